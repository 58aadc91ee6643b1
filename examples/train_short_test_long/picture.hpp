// Draws perplexity against evaluation length, as in the paper's figure 1, by gnuplot.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <sstream>
#include <string>
#include <vector>

#include "../gnuplot.hpp"
#include "report.hpp"

namespace experiment::picture {

/// How a method is drawn. Those that only evaluate the rotary model have its colour, lighter and dashed.
struct Style {
  const char *title, *colour, *point, *dash;
};
inline constexpr std::array<Style, kMethodNames.size()> kStyles = {{{"ALiBi", "#1b7837", "7", "1"},
                                                                    {"T5 bias", "#e08214", "13", "1"},
                                                                    {"rotary", "#2166ac", "5", "1"},
                                                                    {"rotary + ALiBi", "#35978f", "11", "1"},
                                                                    {"rotary, interpolated", "#6baed6", "4", "2"},
                                                                    {"rotary, NTK", "#6baed6", "8", "3"},
                                                                    {"rotary, YaRN", "#6baed6", "10", "4"},
                                                                    {"xPos", "#762a83", "9", "1"},
                                                                    {"sinusoidal", "#b2182b", "15", "1"},
                                                                    {"learned", "#606060", "2", "1"}}};
inline const Style& style_of(Method method) { return kStyles[std::size_t(method)]; }

/// The vertical range: from below the smallest perplexity to some times the smallest at the training length. Lines of
/// methods that fail leave it; with all of them inside, the others would nearly coincide.
struct Range {
  double bottom = 1e300, top = 0;
};

inline Range range_of(const std::vector<Line>& lines) {
  constexpr double kTimes = 4;
  double least = 1e300, least_trained = 1e300, largest = 0;
  for (const Line& line : lines)
    for (const Evaluation& e : line.evaluations) {
      const double perplexity = std::exp(e.loss);
      least = std::min(least, perplexity);
      largest = std::max(largest, perplexity);
      if (e.length == line.training_length) least_trained = std::min(least_trained, perplexity);
    }
  return {0.93 * least, std::min(1.07 * largest, kTimes * least_trained)};
}

/// Writes one block of data for each method: length, perplexity.
inline void put_panel(std::ostream& script, const std::vector<Line>& lines, Reading reading) {
  script << '$' << name_of(reading) << " << END\n";
  for (const Line& line : lines) {
    for (const Evaluation& e : line.evaluations)
      if (e.reading == reading) script << e.length << ' ' << std::exp(e.loss) << '\n';
    script << "\n\n";
  }
  script << "END\n";
}

inline void put_data(std::ostream& script, const std::vector<Line>& lines, const std::string& png) {
  const Index trained = lines[0].training_length;
  const Range range = range_of(lines);
  for (const Reading reading : {Reading::nonoverlapping, Reading::sliding}) put_panel(script, lines, reading);
  const auto put_styles = [&](const char* name, const char* Style::* part) {
    gnuplot::put_array(script, name, std::ptrdiff_t(lines.size()),
                       [&](std::ptrdiff_t i) { return style_of(lines[std::size_t(i)].method).*part; });
  };
  put_styles("titles", &Style::title);
  put_styles("colours", &Style::colour);
  put_styles("points", &Style::point);
  put_styles("dashes", &Style::dash);
  script << "methods = " << lines.size() << "\ntrained = " << trained << "\nlongest = " << kLongest * trained
         << "\nstride = " << lines[0].evaluations.back().stride << "\ntop = " << range.top
         << "\nbottom = " << range.bottom << "\npng = " << gnuplot::quoted(png) << '\n';
}

inline constexpr const char* kDrawing = R"gnuplot(
set encoding utf8
set terminal pngcairo size 1800, 900 font 'DejaVu Sans,14' background 'white'
set output png
set multiplot title sprintf('{/=20 Language models trained at %d bytes, evaluated at up to %d without further training}', \
  trained, longest) offset 0, -0.5

set border 3 linewidth 1.5 linecolor '#606060'
set tics nomirror out scale 0.6
set grid xtics ytics linecolor '#e6e6e6' linewidth 1 linetype 1
set xlabel 'evaluation length, bytes' font ',16'
set ylabel 'perplexity per byte' font ',16'
set logscale x 2
set logscale y
set xrange [trained / 1.4 : longest * 1.3]
set yrange [bottom:top]
set xtics ()
do for [i = 0:4] { set xtics add (sprintf('%d', trained * 2 ** i) trained * 2 ** i) }
set ytics (1.5, 1.75, 2, 2.25, 2.5, 2.75, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 25, 30, 40, 50, 70, 100)
set bmargin at screen 0.12
set tmargin at screen 0.80
set arrow 1 from trained, graph 0 to trained, graph 1 nohead linewidth 2 dashtype 2 linecolor '#909090'
set label 1 'training length' at trained, graph 0.97 rotate by 90 right offset -1.7, 0 textcolor '#606060'
set key at screen 0.5, screen 0.905 center center vertical maxrows 2 Left reverse samplen 3 width 1 font ',15'

line = "plot for [i = 1:methods] data index i - 1 using 1:2 title titles[i] \
          with linespoints linewidth 3 dashtype int(dashes[i]) pointtype int(points[i]) pointsize 1.7 linecolor rgb colours[i]"

set title 'nonoverlapping windows' font ',17' offset 0, -0.3
set lmargin at screen 0.065
set rmargin at screen 0.485
data = '$nonoverlapping'
eval line

unset key
set title sprintf('sliding windows, stride %d: the same bytes at every length', stride)
set lmargin at screen 0.565
set rmargin at screen 0.985
data = '$sliding'
eval line
unset multiplot
unset output
)gnuplot";

}  // namespace experiment::picture

namespace experiment {

/// Throws std::runtime_error if that fails.
inline void draw(const std::vector<Outcome>& outcomes, const std::string& png) {
  gnuplot::draw(png, [&](const std::string& path) {
    std::ostringstream script;
    picture::put_data(script, lines_of(outcomes), path);
    script << picture::kDrawing;
    return script.str();
  });
}

}  // namespace experiment
