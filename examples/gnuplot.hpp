// The common parts of the examples' pictures: parts of gnuplot scripts, and running gnuplot.
#pragma once

#include <sys/wait.h>

#include <cmath>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <ostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <system_error>

namespace gnuplot {

/// Quotes a text for gnuplot. In single quotes gnuplot runs no command in backticks and reads no escape.
inline std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char c : text) result += c == '\'' ? "''" : std::string(1, c);
  return result + "'";
}

/// 1/256, or the number itself if it is no such fraction.
inline std::string slope_text(float slope) {
  std::ostringstream text;
  const float inverse = 1 / slope;
  std::round(inverse) == inverse ? text << "1/" << inverse : text << slope;
  return text.str();
}

/// Writes an array of the texts text(0), …, text(size - 1) as a gnuplot variable.
template <class Text>
void put_array(std::ostream& script, const char* name, std::ptrdiff_t size, const Text& text) {
  script << "array " << name << "[" << size << "] = [";
  for (std::ptrdiff_t i = 0; i < size; i++) script << (i ? ", " : "") << quoted(text(i));
  script << "]\n";
}

/// Throws std::runtime_error if gnuplot is missing or fails.
inline void run(const std::string& script) {
  std::signal(SIGPIPE, SIG_IGN);  // so that a gnuplot which exits early is an error below and does not end the program
  std::FILE* pipe = popen("gnuplot --default-settings", "w");
  if (!pipe) throw std::runtime_error("cannot start a shell for gnuplot");
  const bool written = std::fwrite(script.data(), 1, script.size(), pipe) == script.size();
  const int status = pclose(pipe);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
    throw std::runtime_error("gnuplot is not installed (on Debian: apt-get install gnuplot-nox)");
  if (!written || status != 0) throw std::runtime_error("gnuplot failed; its message is above");
}

/// Draws into a file beside `png` and renames it when it is complete, so that no incomplete picture remains.
/// script(path) draws into `path`. Throws std::runtime_error if that fails.
template <class Script>
void draw(const std::string& png, const Script& script) {
  const std::string part = png + ".part";
  if (!std::ofstream(part, std::ios::binary)) throw std::runtime_error("cannot write " + part);
  std::error_code error;
  try {
    run(script(part));
    if (std::filesystem::file_size(part) == 0) throw std::runtime_error("gnuplot drew nothing");
    std::filesystem::rename(part, png, error);
    if (error) throw std::runtime_error("cannot write " + png + ": " + error.message());
  } catch (...) {
    std::filesystem::remove(part, error);
    throw;
  }
}

}  // namespace gnuplot
