# What the rooms core and kernels and their tests need, without one compiled library, so that a cross build needs no
# packages of the target but its C++ library. fmt, nlohmann-json and Highway are used as headers; they lie in
# /usr/include, which clang searches for every target. GoogleTest is built from the sources that libgtest-dev brings.
find_package(Threads REQUIRED)

add_library(fmt::fmt INTERFACE IMPORTED)
target_compile_definitions(fmt::fmt INTERFACE FMT_HEADER_ONLY)
add_library(nlohmann_json::nlohmann_json INTERFACE IMPORTED)
add_library(PkgConfig::HWY INTERFACE IMPORTED)

if(KEYSIEVE_TESTS)
  set(INSTALL_GTEST OFF)
  add_subdirectory(/usr/src/googletest ${CMAKE_BINARY_DIR}/googletest EXCLUDE_FROM_ALL)
endif()
