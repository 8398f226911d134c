#pragma once

#include <string>

namespace keysieve {

// A library of the system that is loaded when it is first needed, by whoever fetches something: linked,
// libcurl, libcrypto and the 30 behind them cost every run of the program 8 MB and 8 ms. Stays loaded, since
// threads of a library may outlive its use here.
class SharedLibrary {
 public:
  // `file` as the loader knows it ("libcurl.so.4"), `need` what it must offer ("libcurl 7.85 or later"),
  // `package` Debian's. Throws Error{unsupported} where it is not on this machine.
  SharedLibrary(std::string file, std::string need, const std::string& package);

  // Throws Error{unsupported} naming a function the library lacks. Function: a pointer type.
  template <class Function>
  Function function(const char* name) const {
    return reinterpret_cast<Function>(address(name));
  }

 private:
  void* address(const char* name) const;
  std::string file_;
  std::string need_;
  void* handle_;
};

}  // namespace keysieve
