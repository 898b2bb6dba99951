# Finds the torch to build against, as text: importing it at configure time is slow, and find_package(Torch) demands
# a whole CUDA toolkit when torch is a CUDA build, overrides the architectures and lacks libtorch_python.
# A torch in the build environment wins (it was asked for); else the target environment's, which pip's isolation
# leaves visible through sysconfig.
execute_process(
  COMMAND "${Python_EXECUTABLE}" -c [[
import importlib.util, os, re, sysconfig
spec = importlib.util.find_spec("torch")
folders = [os.path.dirname(spec.origin)] if spec and spec.origin else []
folders += [os.path.join(sysconfig.get_path(key), "torch") for key in ("purelib", "platlib")]
for folder in folders:
    version = os.path.join(folder, "version.py")
    if os.path.isfile(version):
        text = open(version).read()
        def field(name):
            found = re.search(r"^%s\b[^=]*=\s*'([^']*)'" % name, text, re.M)
            return found.group(1) if found else ""
        print(folder, field("__version__"), field("cuda"), sep=";", end="")
        break
]]
  OUTPUT_VARIABLE found)
if(found STREQUAL "")
  message(FATAL_ERROR "minidl: no PyTorch found for ${Python_EXECUTABLE}. Without build isolation it must be "
    "installed first: pip install 'torch>=2.11,<2.14'")
endif()
list(GET found 0 TORCH_DIR)
list(GET found 1 TORCH_VERSION)
list(GET found 2 TORCH_CUDA)
message(STATUS "minidl: building against torch ${TORCH_VERSION} in ${TORCH_DIR}")

add_library(torch_python INTERFACE)
target_include_directories(torch_python SYSTEM INTERFACE
  "${TORCH_DIR}/include" "${TORCH_DIR}/include/torch/csrc/api/include")
foreach(library c10 torch_cpu torch torch_python)
  find_library(TORCH_LIBRARY_${library} ${library} PATHS "${TORCH_DIR}/lib" NO_DEFAULT_PATH REQUIRED)
  target_link_libraries(torch_python INTERFACE "${TORCH_LIBRARY_${library}}")
endforeach()
