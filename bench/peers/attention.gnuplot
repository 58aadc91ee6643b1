# Time of the forward against tokens, one line a method. attention.py sets `table` (the data) and `png` (the picture).
set encoding utf8
set datafile missing '?'

array name[6] = ['torch_bias', 'onnxruntime', 'torch_flex', 'torch_none', 'alibi_dense', 'alibi']
array text[6] = ['PyTorch, bias tensor', 'ONNX Runtime, bias tensor', 'PyTorch FlexAttention, compiled', \
                 'PyTorch without a bias', 'alibi, every key (tolerance 0)', 'alibi, default']
array colour[6] = ['#b2182b', '#762a83', '#e08214', '#808080', '#2166ac', '#1b7837']
array shape[6] = [5, 13, 11, 6, 9, 7]

stats table using 1 name 'tokens' nooutput
stats table using 2 name 'seconds' nooutput
trained = int(system("grep -c '^# trained ' '".table."' || true")) > 0

set terminal pngcairo size (trained ? 1700 : 1100), 1000 font 'DejaVu Sans,17' background 'white'
set output png
set border 3 linewidth 1.5 linecolor '#606060'
set tics nomirror out scale 0.6
set grid xtics ytics linecolor '#e6e6e6' linewidth 1 linetype 1
set logscale xy
set xrange [tokens_min / 1.3 : tokens_max * 1.3]
set yrange [seconds_min / 1.5 : seconds_max * 1.8]
set xtics ('256' 256, '512' 512, '1,024' 1024, '2,048' 2048, '4,096' 4096, '8,192' 8192, '16,384' 16384)
set ytics ('1 ms' 1e-3, '2 ms' 2e-3, '5 ms' 5e-3, '10 ms' 1e-2, '20 ms' 2e-2, '50 ms' 5e-2, '0.1 s' 0.1, '0.2 s' 0.2, \
           '0.5 s' 0.5, '1 s' 1, '2 s' 2, '5 s' 5, '10 s' 10, '20 s' 20, '50 s' 50)
set xlabel 'tokens' font ',19' offset 0, -0.2

set multiplot
set label 1 '{/=23 Causal attention with ALiBi, forward}' at screen 0.5, 0.955 center
set tmargin at screen 0.86; set bmargin at screen 0.26
do for [data in (trained ? 'random trained' : 'random')] {
  if (data eq 'random') {
    set lmargin at screen (trained ? 0.09 : 0.13); set rmargin at screen (trained ? 0.53 : 0.97)
    set ylabel 'time of one call' font ',19' offset -1.5, 0
  } else {
    unset label 1; unset ylabel
    set lmargin at screen 0.58; set rmargin at screen 0.98
  }
  set title (data eq 'random' ? 'random q, k, v' : 'q, k, v of a trained model') font ',19' offset 0, -0.3
  set key off
  plot for [m = 1:6] table index data.' '.name[m].'.' using 1:2 \
    with linespoints linewidth (m == 6 ? 5.5 : 4) pointtype shape[m] pointsize 2 linecolor rgb colour[m]
}

# The common legend, below.
unset title; unset xlabel; unset ylabel; unset tics; unset border; unset grid; unset label 1
unset logscale
set lmargin at screen 0.04; set rmargin at screen 0.98; set bmargin at screen 0.01; set tmargin at screen 0.16
set xrange [0:1]; set yrange [0:1]
set key center center horizontal Left reverse samplen 3 spacing 1.4 maxcols 2 width 0 font ',18'
plot for [m = 1:6] NaN title text[m] \
  with linespoints linewidth (m == 6 ? 5.5 : 4) pointtype shape[m] pointsize 2 linecolor rgb colour[m]
unset multiplot
unset output
