// Several texts that grow at the same time, written one after another: the first that is not complete appears as it
// grows, those behind it wait.
#pragma once

#include <cstddef>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

namespace pretrained {

class OrderedOutput {
 public:
  OrderedOutput(std::ostream& out, std::size_t count) : out_(out), texts_(count), complete_(count, false) {}

  void add(std::size_t text, const std::string& more) {
    if (text == current_)
      out_ << more << std::flush;
    else
      texts_[text] += more;
  }

  /// Nothing more will be added to a text.
  void complete(std::size_t text) {
    complete_[text] = true;
    while (current_ < texts_.size() && complete_[current_]) {
      out_ << '\n';
      if (++current_ < texts_.size()) out_ << std::exchange(texts_[current_], {});
    }
    out_.flush();
  }

 private:
  std::ostream& out_;
  std::vector<std::string> texts_;
  std::vector<bool> complete_;
  std::size_t current_ = 0;
};

}  // namespace pretrained
