// Perplexity against the window, one line a dtype, by gnuplot.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../gnuplot.hpp"
#include "json_field.hpp"
#include "numbers.hpp"

namespace pretrained {

struct Curve {
  std::string title;
  std::map<Index, double> points = {};  // perplexity by window
  bool dashed = false;
};

/// {"name": {"512": 6.995, …}, …}
inline std::vector<Curve> read_curves(const std::string& path) {
  std::ifstream in(path);
  if (!in) throw std::runtime_error(path + ": cannot be read");
  const Json json = parse_json(std::string{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()}, path);
  const Field root(json, path);
  std::vector<Curve> curves;
  for (const auto& [name, unused] : root.object()) {
    Curve curve{.title = name, .points = {}, .dashed = true};
    for (const auto& [window, value] : root[name].object()) {
      char* end = nullptr;
      const long long tokens = std::strtoll(window.c_str(), &end, 10);
      if (*end != '\0' || tokens < 1) root[name][window].fail("has a name that is no number of tokens");
      curve.points[Index(tokens)] = root[name][window].number();
    }
    curves.push_back(std::move(curve));
  }
  return curves;
}

/// Throws std::runtime_error where draw() would: without gnuplot, or for a place that cannot be written.
inline void check_drawable(const std::string& png) {
  gnuplot::run("exit\n");
  const std::string part = png + ".part";
  if (!std::ofstream(part)) throw std::runtime_error(part + ": cannot be written");
  std::filesystem::remove(part);
}

/// Throws std::runtime_error where that fails.
inline void draw(const std::vector<Curve>& curves, const std::string& png) {
  static constexpr const char* kColours[] = {"#1b7837", "#2166ac", "#e08214", "#b2182b", "#762a83", "#404040"};
  gnuplot::draw(png, [&](const std::string& path) {
    std::ostringstream script;
    script << "set encoding utf8\nset terminal pngcairo size 1200, 800 font 'DejaVu Sans,14' background 'white'\n"
           << "set output " << gnuplot::quoted(path) << R"gnuplot(
set border 3 linewidth 1.5 linecolor '#606060'
set tics nomirror out scale 0.6
set grid xtics ytics linecolor '#e6e6e6' linewidth 1 linetype 1
set xlabel 'context, tokens' font ',16'
set ylabel 'perplexity per token' font ',16'
set logscale x 2
set logscale y
set format x '%.0f'
set offsets graph 0.03, graph 0.03
set ytics (5, 6, 7, 8, 10, 12, 15, 20, 30, 40, 50, 70, 100, 200, 500, 1000)
set key top left Left reverse samplen 3 font ',15'
)gnuplot";
    double least = 1e300, most = 0;
    for (const Curve& curve : curves)
      for (const auto& [window, perplexity] : curve.points) {
        least = std::min(least, perplexity);
        most = std::max(most, perplexity);
      }
    script << "set yrange [" << 0.9 * least << ":" << 1.2 * most << "]\n";
    std::ostringstream plot;
    for (std::size_t i = 0; i < curves.size(); i++) {
      script << "$curve" << i << " << END\n";
      for (const auto& [window, perplexity] : curves[i].points) script << window << ' ' << perplexity << '\n';
      script << "END\n";
      plot << (i ? ", " : "plot ") << "$curve" << i << " using 1:2 title " << gnuplot::quoted(curves[i].title)
           << " noenhanced with linespoints linewidth 3 pointtype 7 pointsize 1.4 linecolor rgb '"
           << kColours[i % std::size(kColours)] << "'" << (curves[i].dashed ? " dashtype 2" : "");
    }
    script << plot.str() << "\nunset output\n";
    return script.str();
  });
}

}  // namespace pretrained
