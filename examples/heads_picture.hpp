// Draws the bias and the attention weights of every head in one picture, for heads.cpp, by gnuplot.
#pragma once

#include <Eigen/Core>
#include <sstream>
#include <string>
#include <unsupported/Eigen/CXX11/Tensor>
#include <vector>

#include "gnuplot.hpp"

struct Picture {
  std::vector<std::string> words;
  Eigen::VectorXf slopes;
  Eigen::Tensor<float, 3, Eigen::RowMajor> bias;     // [heads, words, words]
  Eigen::Tensor<float, 4, Eigen::RowMajor> weights;  // [1, heads, words, words]
  std::string source;                                // the source of the words
};

namespace picture {

using Eigen::Index;

/// At most `most` characters, then an ellipsis if there are more. Never cuts a UTF-8 character.
inline std::string shortened(const std::string& word, std::size_t most) {
  std::string result;
  std::size_t characters = 0;
  for (const char c : word) {
    const bool starts_one = (static_cast<unsigned char>(c) & 0xC0) != 0x80;
    if (starts_one && ++characters > most) return result + "…";
    result += c;
  }
  return result;
}

/// The last word that occurred before. Its query shows the balance of similarity and distance.
inline Index telling_query(const std::vector<std::string>& words) {
  for (std::size_t i = words.size(); i-- > 1;)
    for (std::size_t j = 0; j < i; j++)
      if (words[i] == words[j]) return Index(i);
  return Index(words.size()) - 1;
}

/// A block of data for gnuplot, one matrix after another. Keys that a query does not see have a special number.
template <class Entry>
void put_matrices(std::ostream& script, const char* name, Index count, Index rows, Index cols, const Entry& entry) {
  script << name << " << END\n";
  for (Index m = 0; m < count; m++) {
    for (Index i = 0; i < rows; i++, script << '\n')
      for (Index j = 0; j < cols; j++) script << entry(m, i, j) << ' ';
    script << "\n\n";
  }
  script << "END\n";
}

/// Writes the numbers and the words as gnuplot variables.
inline void put_data(std::ostream& script, const Picture& p, const std::string& png) {
  const auto n = Index(p.words.size()), heads = p.slopes.size(), query = telling_query(p.words);
  constexpr float kHidden = 1e9F;  // gnuplot reports NaN in its data but accepts it from an expression
  const auto bias = [&](Index h, Index i, Index j) { return j <= i ? p.bias(h, i, j) : kHidden; };
  const auto weight = [&](Index h, Index i, Index j) { return j <= i ? p.weights(0, h, i, j) : kHidden; };
  put_matrices(script, "$bias", heads, n, n, bias);
  put_matrices(script, "$weights", heads, n, n, weight);
  put_matrices(script, "$block", 1, heads, n, [&](Index, Index h, Index j) { return weight(h, query, j); });
  gnuplot::put_array(script, "words", n, [&](Index i) { return shortened(p.words[std::size_t(i)], 11); });
  gnuplot::put_array(script, "slopes", heads, [&](Index h) { return gnuplot::slope_text(p.slopes[h]); });
  script << "n = " << n << "\nheads = " << heads << "\nquery = " << query << "\nsource = " << gnuplot::quoted(p.source)
         << "\npng = " << gnuplot::quoted(png) << '\n';
}

// Everything is placed in pixels of 1800 x 1080. The panels are 192 wide, so that a pair of tokens is 2 x 2 pixels.
inline constexpr const char* kDrawing = R"gnuplot(
set encoding utf8
set terminal pngcairo size 1800, 1080 font 'DejaVu Sans,10.5' background 'white'
set output png
set multiplot
x(pixels) = pixels / 1800.0
y(pixels) = pixels / 1080.0
panel = 192
left(head) = 80 + (panel + 10) * (head - 1)
visible(value) = value < 1e8 ? value : NaN

set key off
set border linewidth 0.6 linecolor '#606060'
set tics nomirror out scale 0.4
set object 1 rectangle from graph 0, 0 to graph 1, 1 fillcolor '#e4e4e4' fillstyle solid noborder behind
set label 1 noenhanced at screen x(80), y(1048) left font ',18' \
  sprintf('What a slope does: the first %d words of %s, in %d heads that differ only in their slope m', \
          n, source, heads)

# A row of square panels, one a head: the block of data, what it shows, and the lower edge in pixels.
set xrange [-0.5:n - 0.5]
set yrange [n - 0.5:-0.5]
step = n > 40 ? 32 : 8
set ytics step offset 0.5, 0
set xtics step offset 0, 0.4
panels = "\
  set colorbox user origin x(1706), y(bottom) size x(16), y(panel); \
  set label 2 heading at screen x(80), y(bottom + panel + 44) left font ',14'; \
  set bmargin at screen y(bottom); set tmargin at screen y(bottom + panel); \
  set xlabel 'key position' offset 0, 0.8; set ylabel 'query position' offset 0.4, 0; set format y '%g'; \
  do for [h = 1:heads] { \
    set title sprintf('head %d,  m = %s', h, slopes[h]) offset 0, -0.7; \
    set lmargin at screen x(left(h)); set rmargin at screen x(left(h) + panel); \
    plot data index h - 1 matrix using 1:2:(visible($3)) with image; \
    unset colorbox; unset label; unset ylabel; set format y ''; \
  }"

set palette defined (0 '#08204a', 0.5 '#3f7fbf', 0.85 '#b8d8ee', 1 '#ffffff')
set cbrange [-8:0]
set cbtics ('≤ -8' -8, -6, -4, -2, 0)
data = '$bias'; bottom = 768
heading = 'Bias  -m (i - j), added to the logits.  At -8 a key has 1/3000 of its weight without a bias;  grey: hidden by the causal mask'
eval panels

set palette defined (0 '#440154', 1 '#3b528b', 2 '#21918c', 3 '#5ec962', 4 '#fde725')
set cbrange [0.001:1]
set logscale cb
set cbtics ('≤ 0.001' 0.001, '0.01' 0.01, '0.1' 0.1, '1' 1)
data = '$weights'; bottom = 452
heading = 'Attention weights.  No trained model: a word is a random pattern, which attracts its own repetitions'
eval panels

# One query's weights, a row a head, above the words themselves.
set label 2 noenhanced at screen x(80), y(366) left font ',14' \
  sprintf('Where “%s”, word %d, looks: the weights of that one query, a row a head', words[query + 1], query)
set lmargin at screen x(left(1)); set rmargin at screen x(left(heads) + panel)
set bmargin at screen y(132); set tmargin at screen y(350)
unset title
unset xlabel
set ylabel 'slope of the head' offset 0.4, 0
set yrange [heads - 0.5:-0.5]
unset xtics
unset ytics
set format y '%g'
set ytics nomirror () offset 0.5, 0
do for [h = 1:heads] { set ytics add (slopes[h] h - 1) }
do for [i = 1:n] {
  set label 10 + i words[i] noenhanced at first i - 1, graph -0.03 rotate by 90 right font ',9.5' \
    textcolor rgb (words[i] eq words[query + 1] ? 0xc00000 : 0x202020)
}
plot $block matrix using 1:2:(visible($3)) with image
unset multiplot
unset output
)gnuplot";

inline std::string script_for(const Picture& p, const std::string& png) {
  std::ostringstream script;
  put_data(script, p, png);
  script << kDrawing;
  return script.str();
}

}  // namespace picture

/// Throws std::runtime_error if that fails.
inline void draw(const Picture& p, const std::string& png) {
  gnuplot::draw(png, [&](const std::string& path) { return picture::script_for(p, path); });
}
