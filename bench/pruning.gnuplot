# Time against tokens. Run by pictures.sh, which sets `table`, the data, and `png`, the picture.
set encoding utf8
set terminal pngcairo size 1500, 1000 font 'DejaVu Sans,15' background 'white'
set output png
set datafile missing '?'

set title "{/=20 Causal attention: 8 heads, head\\_dim 64, float, one thread}\n{/=4  }\n" \
  . '{/=15 beside the green line: speedup over every key}' offset 0, 0.6
set lmargin 12; set rmargin 11; set tmargin 6; set bmargin 5
set border 3 linewidth 1.5 linecolor '#606060'
set tics nomirror out scale 0.6
set grid xtics ytics linecolor '#e6e6e6' linewidth 1 linetype 1
set key top left Left reverse samplen 3 spacing 1.35 font ',16' opaque box linecolor '#d0d0d0' width -11 height 0.6
set xlabel 'tokens' font ',17'
set ylabel 'time of one call' font ',17' offset -1, 0
set logscale xy

set xtics ('512' 512, '1,024' 1024, '2,048' 2048, '4,096' 4096, '8,192' 8192, '16,384' 16384, '32,768' 32768, \
           '65,536' 65536, '131,072' 131072)
set ytics ('10 µs' 1e-5, '0.1 ms' 1e-4, '1 ms' 1e-3, '10 ms' 1e-2, '0.1 s' 0.1, '1 s' 1, '10 s' 10, '100 s' 100)

stats table index 'pruned' using 1 name 'tokens' nooutput
stats table index 'pruned' using 2 name 'pruned' nooutput
set xrange [tokens_min / 1.4 : tokens_max * 1.5]
set yrange [pruned_min / 6 : *]

# Lines of slopes 1 and 2 through one point below the data.
x0 = tokens_max >= 32 * tokens_min ? tokens_max / 32.0 : tokens_min; y0 = pruned_min * 0.8; end = tokens_max * 1.5
linear(x) = x >= x0 ? y0 * x / x0 : NaN
square(x) = x >= x0 ? y0 * (x / x0) ** 2 : NaN
set samples 2000
set label 1 'slope 1' at end, linear(end) offset 0.7, 0 textcolor '#707070'
set label 2 'slope 2' at end, square(end) offset 0.7, 0 textcolor '#707070'

plot linear(x) notitle with lines dashtype 2 linewidth 2 linecolor '#909090', \
     square(x) notitle with lines dashtype 2 linewidth 2 linecolor '#909090', \
     table index 'eigen_blocked' using 1:2 title 'plain Eigen, in blocks' \
       with linespoints linewidth 3.5 pointtype 5 pointsize 1.5 linecolor '#e08214', \
     table index 'dense' using 1:2 title 'alibi, every key (tolerance 0)' \
       with linespoints linewidth 3.5 pointtype 9 pointsize 1.9 linecolor '#2166ac', \
     table index 'pruned' using 1:2 title 'alibi, default: prunes at most 2^{-24} of a row’s softmax' \
       with linespoints linewidth 4.5 pointtype 7 pointsize 1.8 linecolor '#1b7837', \
     table index 'pruned' using 1:2:(sprintf('%.1f ×', $3)) notitle \
       with labels offset 0.5, -1.4 left font ',15' textcolor '#1b7837'
unset output
