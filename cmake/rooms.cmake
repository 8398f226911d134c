# A room is a folder of src/ that becomes the static library keysieve_NAME, with its tests in tests/NAME. The global
# property KEYSIEVE_ROOMS lists the libraries, lowest first.
# Naming a room's neighbours here is what lets it link to them; tools/check_rooms.py checks the #includes.

add_library(keysieve_flags INTERFACE)
target_include_directories(keysieve_flags INTERFACE ${CMAKE_SOURCE_DIR}/include ${CMAKE_SOURCE_DIR}/src)
target_compile_options(keysieve_flags INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wconversion
                       -Wno-sign-conversion -Wno-implicit-int-float-conversion -Werror -fno-math-errno)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  # Every Arm core has fused multiply-adds, and clang uses them unasked within an expression: scores that must be equal
  # on all machines (docs/decisions/0002-kernels.md) would not be. x86 builds are for machines without them.
  target_compile_options(keysieve_flags INTERFACE -ffp-contract=off)
endif()
if(KEYSIEVE_SANITIZE)
  target_compile_options(keysieve_flags INTERFACE -fsanitize=${KEYSIEVE_SANITIZE} -fno-sanitize-recover=all
                         -fsanitize-ignorelist=${PROJECT_SOURCE_DIR}/cmake/sanitizer_ignores.txt
                         -fno-omit-frame-pointer)
  target_link_options(keysieve_flags INTERFACE -fsanitize=${KEYSIEVE_SANITIZE})
endif()
# Compiled without optimisation, in half the time: the tests, and where sanitizers see to it the command line and the rooms
# that compute little and that no fuzz target reaches. Not train: its tests would take two minutes more.
set(KEYSIEVE_UNOPTIMISED -O0)
set(KEYSIEVE_LIGHT_ROOMS "hub|eval|report")

# The headers of other projects that nearly every file includes, compiled once for all rooms, the program and all tests:
# eight files of all kinds took 96 s on a 2-core AMD EPYC (Zen 3, 2026-11-28) and take 61. A file still includes what it
# uses: tools/check_rooms.py sees to it. None where only core and kernels are built, for the same reason.
set(KEYSIEVE_COMMON_HEADERS <algorithm> <array> <filesystem> <functional> <map> <memory> <optional> <span> <string>
    <vector> <fmt/format.h> <nlohmann/json.hpp>)
set(KEYSIEVE_PROGRAM_HEADERS ${KEYSIEVE_COMMON_HEADERS} <CLI/CLI.hpp>)
set(KEYSIEVE_TEST_HEADERS ${KEYSIEVE_COMMON_HEADERS} <gmock/gmock.h> <gtest/gtest.h>)
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  target_compile_options(keysieve_flags INTERFACE "SHELL:-Xclang -fno-pch-timestamp")  # or ccache never finds a thing
endif()

# The first target compiles the headers for all others of its kind: the room core, its tests, the program.
function(keysieve_precompile target first headers)
  if(KEYSIEVE_KERNELS_ONLY)
    return()
  endif()
  if(target STREQUAL first)
    target_precompile_headers(${target} PRIVATE ${${headers}})
  else()
    target_precompile_headers(${target} REUSE_FROM ${first})
  endif()
endfunction()

# Parses "ROOMS a b PACKAGES x y" into the link libraries LIBRARIES.
macro(keysieve_parse_links)
  cmake_parse_arguments(ARG "" "" "ROOMS;PACKAGES" ${ARGN})
  set(LIBRARIES keysieve_flags ${ARG_PACKAGES})
  foreach(room ${ARG_ROOMS})
    list(APPEND LIBRARIES keysieve_${room})
  endforeach()
endmacro()

# Where the tests find the repository's files: tests/support/source_folder.h.
if(KEYSIEVE_TESTS)
  add_library(keysieve_source_folder STATIC ${CMAKE_SOURCE_DIR}/tests/support/source_folder.cpp)
  target_include_directories(keysieve_source_folder PRIVATE ${CMAKE_SOURCE_DIR}/tests)
  target_link_libraries(keysieve_source_folder PRIVATE keysieve_flags)
  target_compile_definitions(keysieve_source_folder PRIVATE KEYSIEVE_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
endif()

function(keysieve_tests name)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/${name}/*.cpp)
  if(NOT KEYSIEVE_TESTS OR NOT sources)
    return()
  endif()
  add_executable(${name}_tests ${sources})
  target_include_directories(${name}_tests PRIVATE ${CMAKE_SOURCE_DIR}/tests)
  target_link_libraries(${name}_tests PRIVATE ${ARGN} keysieve_source_folder keysieve_flags GTest::gmock
                        GTest::gtest_main)
  if(NOT KEYSIEVE_KERNELS_ONLY)  # under emulation the largest test would take two minutes
    target_compile_options(${name}_tests PRIVATE ${KEYSIEVE_UNOPTIMISED})
  endif()
  keysieve_precompile(${name}_tests core_tests KEYSIEVE_TEST_HEADERS)
  if(name MATCHES "^(hub|cli)$")
    target_link_libraries(${name}_tests PRIVATE keysieve_loopback_server)
  endif()
  gtest_discover_tests(${name}_tests TEST_PREFIX ${name}. DISCOVERY_TIMEOUT 60
                       PROPERTIES TIMEOUT 600 ENVIRONMENT "KEYSIEVE_PROGRAM=${CMAKE_BINARY_DIR}/keysieve")
endfunction()

function(keysieve_room name)
  keysieve_parse_links(${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/${name}/*.cpp)
  if(sources)
    add_library(keysieve_${name} STATIC ${sources})
    target_link_libraries(keysieve_${name} PUBLIC ${LIBRARIES})
    if(NOT name STREQUAL "kernels")  # they include little and read no files
      if(KEYSIEVE_SANITIZE AND name MATCHES "^(${KEYSIEVE_LIGHT_ROOMS})$")
        target_compile_options(keysieve_${name} PRIVATE ${KEYSIEVE_UNOPTIMISED})
        keysieve_precompile(keysieve_${name} keysieve_hub KEYSIEVE_COMMON_HEADERS)
      else()
        if(KEYSIEVE_FUZZ)
          # Coverage for libFuzzer; its driver is linked into the fuzz targets alone.
          target_compile_options(keysieve_${name} PRIVATE -fsanitize=fuzzer-no-link)
        endif()
        keysieve_precompile(keysieve_${name} keysieve_core KEYSIEVE_COMMON_HEADERS)
      endif()
    endif()
  else()
    add_library(keysieve_${name} INTERFACE)
    target_link_libraries(keysieve_${name} INTERFACE ${LIBRARIES})
  endif()
  set_property(GLOBAL APPEND PROPERTY KEYSIEVE_ROOMS keysieve_${name})
  keysieve_tests(${name} keysieve_${name})
endfunction()

# The command line: build/keysieve. Its tests run the program itself.
function(keysieve_program name)
  keysieve_parse_links(${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/${name}/*.cpp)
  if(NOT sources)
    return()
  endif()
  add_executable(keysieve ${sources})
  target_link_libraries(keysieve PRIVATE ${LIBRARIES})
  if(KEYSIEVE_SANITIZE)
    target_compile_options(keysieve PRIVATE ${KEYSIEVE_UNOPTIMISED})
  endif()
  keysieve_precompile(keysieve keysieve KEYSIEVE_PROGRAM_HEADERS)
  keysieve_tests(${name} ${LIBRARIES})
  if(TARGET ${name}_tests)
    add_dependencies(${name}_tests keysieve)
  endif()
endfunction()

# The SIMD kernels take 198 s to compile with sanitizers, 104 without AVX-512's (2-core AMD EPYC, Zen 3, 2026-11-28); a
# machine without AVX-512 runs none of these.
function(keysieve_leave_out_avx512)
  include(CheckCXXSourceRuns)
  check_cxx_source_runs("int main() { return __builtin_cpu_supports(\"avx512vbmi2\") ? 0 : 1; }" KEYSIEVE_CPU_HAS_AVX512)
  if(NOT KEYSIEVE_CPU_HAS_AVX512)
    target_compile_definitions(keysieve_kernels PRIVATE KEYSIEVE_WITHOUT_AVX512=1)
  endif()
endfunction()
