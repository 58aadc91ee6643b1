// Compiled with -fno-exceptions. An invalid call passes its message to the handler of the program.
#include <cstdio>
#include <cstdlib>
#include <cstring>

[[noreturn]] inline void handle(const char* message) {
  const char* const expected = "alibi: heads is -1; expected 0 or more";
  std::puts(message);
  std::exit(std::strcmp(message, expected) == 0 ? 0 : 1);
}
#define ALIBI_HANDLE_ERROR(message) handle(message)

#include <alibi/slopes.hpp>

int main() {
  alibi::slopes(-1);
  return 3;  // not reached
}
