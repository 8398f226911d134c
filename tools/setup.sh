# Sourced by ./run: what it installs, and how a build folder is configured.

# shellcheck disable=SC2034  # used by ./run
BUILD_PACKAGES=(clang-19 lld-19 cmake ninja-build pkg-config ccache python3 python3-pip ca-certificates
                libhwy-dev libfmt-dev libcli11-dev nlohmann-json3-dev libpcre2-dev libutf8proc-dev libedit-dev
                libeigen3-dev libcurl4-openssl-dev libssl-dev libminizip-dev libgtest-dev libgmock-dev libbenchmark-dev bible-kjv bible-kjv-text)
# shellcheck disable=SC2034
CHECK_PACKAGES=(clang-format-19 clang-tidy-19 libclang-rt-19-dev chromium fonts-dejavu-core)
# shellcheck disable=SC2034
ARM_PACKAGES=(libstdc++-12-dev-arm64-cross qemu-user googletest)
# shellcheck disable=SC2034
BENCH_PACKAGES=(python3-venv python3-dev g++)

# Paths inside the tree do not spoil the compiler's cache, nor do precompiled headers within one tree; a clone elsewhere
# compiles its own headers and therefore everything once.
export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1 CCACHE_SLOPPINESS=pch_defines,time_macros

step() { printf '==> %s\n' "$*" >&2; }

# Installs what is missing; touches no package list when nothing is.
packages() {
  local missing=() name
  for name in "$@"; do
    [[ $(dpkg-query -W -f '${Status}' "$name" 2>/dev/null) == "install ok installed" ]] || missing+=("$name")
  done
  ((${#missing[@]} == 0)) && return
  local as_root=()
  if ((EUID != 0)); then
    command -v sudo >/dev/null || {
      echo "run: these packages are missing and there is no sudo: ${missing[*]}; install them as root" >&2
      exit 1
    }
    as_root=(sudo)
  fi
  step "installing ${missing[*]}"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" \
    </dev/null >/dev/null
}

# configure FOLDER [CMAKE OPTIONS]: only when it was never done or this file changed; Ninja re-runs CMake itself
# when a CMakeLists.txt changes or a source file comes or goes.
configure() {
  local folder=$1
  shift
  [[ $folder/build.ninja -nt tools/setup.sh ]] && return
  step "configuring $folder/"
  cmake -S . -B "$folder" -G Ninja -DCMAKE_CXX_COMPILER=clang++-19 -DCMAKE_CXX_COMPILER_LAUNCHER=ccache \
    -DCMAKE_EXE_LINKER_FLAGS=-fuse-ld=lld -DCMAKE_BUILD_TYPE=Release "$@" >/dev/null
}

# Every C++ file that belongs to this repository, committed or about to be.
cpp_sources() {
  git ls-files --cached --others --exclude-standard -- '*.cpp' '*.h' | while read -r path; do
    if [[ -f $path ]]; then echo "$path"; fi
  done
}
