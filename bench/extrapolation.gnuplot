# Time of a token against the evaluated length. Run by pictures.sh, which sets `table` (the data) and `png` (the
# picture).
set encoding utf8
set terminal pngcairo size 1700, 1080 font 'DejaVu Sans,15' background 'white'
set output png
set datafile missing '?'

stats table index 'all' using 1 name 'tokens' nooutput
stats table index 'all' using 2 name 'us' nooutput
left = tokens_min / 1.25
bottom = us_min / 1.6; top = us_max * 1.8

set border 3 linewidth 1.5 linecolor '#606060'
set tics nomirror out scale 0.6
set grid xtics ytics linecolor '#e6e6e6' linewidth 1 linetype 1
set xlabel 'tokens evaluated' font ',17' offset 0, -0.2
set logscale xy
set xtics ('512' 512, '1,024' 1024, '2,048' 2048, '4,096' 4096, '8,192' 8192, '16,384' 16384, '32,768' 32768, \
           '65,536' 65536)
set yrange [bottom : top]

# The methods that read every key cost nearly the same. Marker sizes and line widths keep the covered ones visible.
array name[7] = ['t5_materialised', 'alibi_materialised', 'rotary', 't5_fused', 'none', 'alibi_dense', 'alibi']
array text[7] = ['T5 bias: materialised, whole matrices in Eigen', 'ALiBi: materialised, whole matrices in Eigen', \
                 'rotary: alibi, rotates q and k at every call', 'T5 bias: alibi, from a table of 129 distances', \
                 'sinusoidal: alibi without a bias', 'ALiBi: alibi, every key (tolerance 0)', \
                 'ALiBi: alibi, default (prunes at most 2^{-24})']
array colour[7] = ['#fdb863', '#b35806', '#998ec3', '#35978f', '#808080', '#2166ac', '#1b7837']
array shape[7] = [4, 5, 12, 2, 6, 9, 7]
array size[7] = [2.6, 1.5, 2.6, 1.9, 2.4, 1.6, 1.8]
array width[7] = [6, 3, 6, 4, 3, 2.5, 4.5]

set multiplot
set label 10 "{/=20 Cost of extrapolation: 8 heads, head\\_dim 64, float, one thread}" at screen 0.5, 0.965 center
set label 11 '{/=15 red cross: twice as many tokens would need more than 4 GiB of materialised bias and scores}' \
  at screen 0.5, 0.925 center
set label 12 'trained at 1,024' at 1024, top rotate by -90 left offset 1.5, -0.6 textcolor '#707070'

do for [pass in 'forward forward_backward'] {
  forward = pass eq 'forward'
  if (forward) {
    set lmargin at screen 0.075; set rmargin at screen 0.585
    set ylabel 'time per token of all heads' font ',17' offset -1.2, 0
    set ytics ('1 µs' 1, '2 µs' 2, '5 µs' 5, '10 µs' 10, '20 µs' 20, '50 µs' 50, '0.1 ms' 100, '0.2 ms' 200, \
               '0.5 ms' 500, '1 ms' 1000, '2 ms' 2000)
    set xrange [left : 65536 * 1.25]
  } else {
    unset label 10; unset label 11
    set lmargin at screen 0.655; set rmargin at screen 0.985
    unset ylabel
    set xrange [left : 8192 * 1.25]
  }
  set tmargin at screen 0.845; set bmargin at screen 0.27
  set title (forward ? 'forward' : 'forward and backward') font ',18' offset 0, -0.3
  set arrow 1 from 1024, bottom to 1024, top nohead dashtype 2 linewidth 2 linecolor '#909090' back
  set key off
  plot for [m = 1:7] table index pass.' '.name[m].'.' using 1:2 \
         with linespoints linewidth width[m] pointtype shape[m] pointsize size[m] linecolor rgb colour[m], \
       for [m = 1:2] table index pass.' '.name[m].'.' using 1:3 \
         with points pointtype 2 pointsize 4 linewidth 4 linecolor rgb '#b2182b'
}

# The common legend, below both panels.
unset title; unset xlabel; unset ylabel; unset tics; unset border; unset grid; unset arrow 1
unset logscale
set lmargin at screen 0.03; set rmargin at screen 0.99; set bmargin at screen 0.01; set tmargin at screen 0.17
set xrange [0:1]; set yrange [0:1]
set key center center horizontal Left reverse samplen 3.5 spacing 1.5 maxcols 2 width 0 font ',16'
plot for [m = 7:1:-1] NaN title text[m] \
  with linespoints linewidth width[m] pointtype shape[m] pointsize size[m] linecolor rgb colour[m]
unset multiplot
unset output
