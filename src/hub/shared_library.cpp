#include "hub/shared_library.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <utility>

#include "keysieve/error.h"

namespace keysieve {

SharedLibrary::SharedLibrary(std::string file, std::string need, const std::string& package)
    : file_(std::move(file)),
      need_(std::move(need)),
      handle_(::dlopen(file_.c_str(), RTLD_NOW | RTLD_LOCAL)) {
  if (handle_ != nullptr) return;
  throw Error(ErrorKind::unsupported, file_, "not on this machine", need_ + " for downloads",
              fmt::format("install it (Debian: {}), or copy the files here and give their path", package));
}

void* SharedLibrary::address(const char* name) const {
  void* const found = ::dlsym(handle_, name);
  if (found == nullptr) throw Error(ErrorKind::unsupported, file_, std::string("no ") + name, need_);
  return found;
}

}  // namespace keysieve
