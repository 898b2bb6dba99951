# One object library per instruction set: the same sources, compiled with that set's flags into a namespace of that
# set's name. Nothing else in the project gets -m flags, so nothing else can hold an instruction the machine lacks.
if(DEFINED MINIDL_ISAS)
  # asked for: pip install -Ccmake.define.MINIDL_ISAS=scalar . compiles in half the time
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  set(MINIDL_ISAS scalar neon)
else()
  set(MINIDL_ISAS scalar avx2 avx512)
endif()
set(MINIDL_FLAGS_scalar "")
set(MINIDL_FLAGS_neon "")
set(MINIDL_FLAGS_avx2 -mavx2 -mfma)
set(MINIDL_FLAGS_avx512 -mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mprefer-vector-width=512)

get_filename_component(MINIDL_CSRC "${CMAKE_CURRENT_LIST_DIR}/../csrc" ABSOLUTE)

function(add_isa_library target isa)
  add_library(${target} OBJECT ${ARGN})
  target_include_directories(${target} PRIVATE ${MINIDL_CSRC})
  target_compile_definitions(${target} PRIVATE MINIDL_ISA=${isa} MINIDL_ISA_${isa})
  # fp-contract off: the source says where a multiply-add is fused, so that every ISA and build rounds alike.
  target_compile_options(${target} PRIVATE -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math
    -Wall -Wextra -Werror=missing-field-initializers
    -Wno-uninitialized -Wno-maybe-uninitialized # false alarms inside GCC 12's avx512fintrin.h
    ${MINIDL_FLAGS_${isa}})
endfunction()

function(add_isa_kernels isa)
  list(TRANSFORM ARGN PREPEND "${MINIDL_CSRC}/cpu/")
  list(TRANSFORM ARGN APPEND .cpp)
  add_isa_library(cpu_${isa} ${isa} ${ARGN})
endfunction()
