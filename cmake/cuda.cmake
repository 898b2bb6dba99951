# The CUDA kernels, torch-free, if there is an nvcc; else a table that is empty. They need no CUDA torch to compile
# and link: the runtime is linked statically and finds no driver on a machine without one.
set(MINIDL_CUDA AUTO CACHE STRING "ON: compile the CUDA kernels. OFF: do not. AUTO: with a CUDA torch and its nvcc")
set_property(CACHE MINIDL_CUDA PROPERTY STRINGS AUTO ON OFF)

set(MINIDL_CUDA_REASON "")
if(MINIDL_CUDA STREQUAL "AUTO" AND TORCH_CUDA STREQUAL "")
  set(MINIDL_CUDA_REASON "built beside a CPU-only torch (MINIDL_CUDA=ON compiles them nevertheless)")
elseif(NOT MINIDL_CUDA MATCHES "^(AUTO|ON)$")
  set(MINIDL_CUDA_REASON "built with MINIDL_CUDA=${MINIDL_CUDA}")
else()
  # Before the language is enabled: else nvcc's default is taken, which is older than cp.async. Not `native`: the
  # machine that compiles need not be the one that runs.
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 90-virtual)
  endif()
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(MINIDL_CUDA_REASON "no nvcc was found at build time")
  else()
    enable_language(CUDA)
    if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION) # CMake 3.25 does not know it of an nvcc as new as 13
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    endif()
    string(REGEX MATCH "^[0-9]+" nvcc_major "${CMAKE_CUDA_COMPILER_VERSION}")
    string(REGEX MATCH "^[0-9]+" torch_major "${TORCH_CUDA}")
    if(MINIDL_CUDA STREQUAL "AUTO" AND NOT nvcc_major STREQUAL torch_major)
      set(MINIDL_CUDA_REASON "nvcc ${CMAKE_CUDA_COMPILER_VERSION} does not fit torch's CUDA ${TORCH_CUDA}")
      set(CMAKE_CUDA_COMPILER_VERSION "")
    endif()
  endif()
  if(MINIDL_CUDA STREQUAL "ON" AND NOT MINIDL_CUDA_REASON STREQUAL "")
    message(FATAL_ERROR "minidl: MINIDL_CUDA=ON, but ${MINIDL_CUDA_REASON}")
  endif()
endif()

if(NOT MINIDL_CUDA_REASON STREQUAL "")
  message(STATUS "minidl: no CUDA kernels: ${MINIDL_CUDA_REASON}")
  add_library(cuda_kernels OBJECT csrc/cuda/missing.cpp)
  target_include_directories(cuda_kernels PRIVATE csrc)
  return()
endif()

message(STATUS "minidl: CUDA kernels by nvcc ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")
find_package(CUDAToolkit REQUIRED)
file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/cuda/*.cu)
set(hopper_sources ${cuda_sources})
list(FILTER hopper_sources INCLUDE REGEX wgmma)
list(FILTER cuda_sources EXCLUDE REGEX wgmma)
add_library(cuda_kernels OBJECT ${cuda_sources})
add_library(cuda_hopper OBJECT ${hopper_sources})
target_sources(cuda_kernels INTERFACE $<TARGET_OBJECTS:cuda_hopper>)
foreach(target cuda_kernels cuda_hopper)
  target_include_directories(${target} PRIVATE csrc)
  set_target_properties(${target} PROPERTIES CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF
    CUDA_VISIBILITY_PRESET hidden CUDA_RUNTIME_LIBRARY Static)
  target_compile_options(${target} PRIVATE --expt-relaxed-constexpr -Werror=all-warnings -Xfatbin=-compress-all)
  # Linked where the module is linked, but no folder of headers for its other files, whose commands stay the same.
  target_link_libraries(${target} PRIVATE CUDA::cudart_static INTERFACE $<LINK_ONLY:CUDA::cudart_static>)
endforeach()
# Hopper's own instructions are in no target but 90a, which runs on nothing else. 12.5: how the driver's function is
# found. Without the definition the file has no kernel.
if("${CMAKE_CUDA_ARCHITECTURES}" MATCHES "90" AND CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.5)
  set_target_properties(cuda_hopper PROPERTIES CUDA_ARCHITECTURES 90a-real)
  target_compile_definitions(cuda_hopper PRIVATE MINIDL_WGMMA)
endif()
# The runtime's symbols are this module's own: torch has a runtime too.
target_link_options(cuda_kernels INTERFACE LINKER:--exclude-libs,ALL)
