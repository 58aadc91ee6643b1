// Draws the cost of a token against the length of its context, for decode.cpp, by gnuplot.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

#include "gnuplot.hpp"

/// One call of attention over the cache.
struct Reading {
  double seconds = 0;
  std::vector<double> bytes = {};  // of the cache, [heads]
  double all_bytes() const { return std::accumulate(bytes.begin(), bytes.end(), 0.0); }
};

/// The cost of one token.
struct Cost {
  Eigen::Index context = 0;
  Reading every_key = {}, pruned = {};
  double difference = 0;  // the largest, between the two outputs
};

namespace picture {

template <class Number>
double median(const std::vector<Cost>& costs, const Number& number) {
  std::vector<double> all(costs.size());
  std::transform(costs.begin(), costs.end(), all.begin(), number);
  const auto middle = all.begin() + std::ptrdiff_t(all.size() / 2);
  std::nth_element(all.begin(), middle, all.end());
  return *middle;
}

/// One line for each length of context: tokens, milliseconds with every key and by default, megabytes with every key
/// and by default, and megabytes by default for each head.
inline void put_data(std::ostream& script, const std::vector<Cost>& costs, const Eigen::VectorXf& slopes,
                     const std::string& png) {
  script << "$costs << END\n";
  for (const Cost& cost : costs) {
    script << cost.context << ' ' << 1e3 * cost.every_key.seconds << ' ' << 1e3 * cost.pruned.seconds << ' '
           << 1e-6 * cost.every_key.all_bytes() << ' ' << 1e-6 * cost.pruned.all_bytes();
    for (const double bytes : cost.pruned.bytes) script << ' ' << 1e-6 * bytes;
    script << '\n';
  }
  script << "END\n";
  gnuplot::put_array(script, "slopes", slopes.size(), [&](Eigen::Index h) { return gnuplot::slope_text(slopes[h]); });
  script << "heads = " << slopes.size() << "\nlongest = " << costs.back().context << "\npng = " << gnuplot::quoted(png)
         << '\n';
}

inline constexpr const char* kCostDrawing = R"gnuplot(
set encoding utf8
set terminal pngcairo size 1800, 900 font 'DejaVu Sans,14' background 'white'
set output png
set multiplot title "{/=20 What one more token costs: attention over a cache of 8 heads, head\\_dim 64, float, one thread}" \
  offset 0, -0.5

set border 3 linewidth 1.5 linecolor '#606060'
set tics nomirror out scale 0.6
set grid xtics ytics linecolor '#e6e6e6' linewidth 1 linetype 1
set key top left Left reverse samplen 3 spacing 1.3 font ',14' opaque box linecolor '#d0d0d0' width 1 height 0.6
set xlabel 'tokens of context' font ',16'
set logscale xy
set xrange [800:longest * 1.2]
set xtics ('1k' 1024, '2k' 2048, '4k' 4096, '8k' 8192, '16k' 16384, '32k' 32768, '64k' 65536, '128k' 131072, \
           '256k' 262144, '512k' 524288, '1M' 1048576)
set bmargin at screen 0.12
set tmargin at screen 0.86
every = '#2166ac'; pruned = '#1b7837'

set title 'time of a token' font ',17'
set lmargin at screen 0.075
set rmargin at screen 0.46
set yrange [*:*]
set ytics ('1 µs' 1e-3, '10 µs' 1e-2, '0.1 ms' 0.1, '1 ms' 1, '10 ms' 10, '100 ms' 100, '1 s' 1000)
plot $costs using 1:2 title 'every key (tolerance 0)' \
       with linespoints linewidth 3.5 pointtype 9 pointsize 1.7 linecolor rgb every, \
     $costs using 1:3 title 'default tolerance, 2^{-24}' \
       with linespoints linewidth 4 pointtype 7 pointsize 1.6 linecolor rgb pruned, \
     $costs using 1:3:(sprintf('%.1f ×', $2 / $3)) notitle \
       with labels offset 0, -1.3 textcolor rgb pruned

set title 'bytes of the cache that a token reads' font ',17'
set lmargin at screen 0.555
set rmargin at screen 0.94
set ytics ('1 kB' 1e-3, '10 kB' 1e-2, '100 kB' 0.1, '1 MB' 1, '10 MB' 10, '100 MB' 100, '1 GB' 1000)
set palette defined (0 '#c7b3d9', 1 '#542788')
unset colorbox
plot $costs using 1:4 title 'every key, 8 heads' \
       with linespoints linewidth 3.5 pointtype 9 pointsize 1.7 linecolor rgb every, \
     $costs using 1:5 title 'default tolerance, 8 heads' \
       with linespoints linewidth 4 pointtype 7 pointsize 1.6 linecolor rgb pruned, \
     for [h = 1:heads] $costs using 1:h + 5 title (h == 1 ? 'a head alone, by its slope' : '') \
       with linespoints linewidth 2 pointtype 7 pointsize 0.8 linecolor palette fraction (h - 1) / (heads - 1.0), \
     for [h = 1:heads] $costs using ($1 == longest ? $1 : NaN):h + 5:(slopes[h]) notitle \
       with labels left offset 1, 0 font ',13' textcolor '#542788'
unset multiplot
unset output
)gnuplot";

}  // namespace picture

/// The medians of times and bytes, each separately, and the largest of the differences.
inline Cost middle(const std::vector<Cost>& costs) {
  const auto of = [&](Reading Cost::* which) {
    Reading result{picture::median(costs, [&](const Cost& cost) { return (cost.*which).seconds; })};
    for (std::size_t h = 0; h < (costs[0].*which).bytes.size(); h++)
      result.bytes.push_back(picture::median(costs, [&](const Cost& cost) { return (cost.*which).bytes[h]; }));
    return result;
  };
  const double difference = std::max_element(costs.begin(), costs.end(), [](const Cost& a, const Cost& b) {
                              return a.difference < b.difference;
                            })->difference;
  return {costs.back().context, of(&Cost::every_key), of(&Cost::pruned), difference};
}

/// Draws at least two costs of ascending context. Throws std::runtime_error if that fails.
inline void draw(const std::vector<Cost>& costs, const Eigen::VectorXf& slopes, const std::string& png) {
  gnuplot::draw(png, [&](const std::string& path) {
    std::ostringstream script;
    picture::put_data(script, costs, slopes, path);
    script << picture::kCostDrawing;
    return script.str();
  });
}
