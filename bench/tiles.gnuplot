# The tiles that each head computes. Run by pictures.sh, which sets `table`, the data, and `png`, the picture.
set encoding utf8
set terminal pngcairo size 1500, 1000 font 'DejaVu Sans,15' background 'white'
set output png
set datafile missing '?'

set title "{/=20 Tiles computed with pruning, by head}\n{/=4  }\n" \
  . "{/=15 8 heads, head\\_dim 64, normal q and k, default tolerance 2^{-24}; a tile is 64 keys}" offset 0, 0.6
set lmargin 12; set rmargin 17; set tmargin 6; set bmargin 5
set border 3 linewidth 1.5 linecolor '#606060'
set tics nomirror out scale 0.6
set grid xtics ytics linecolor '#e6e6e6' linewidth 1 linetype 1
set key at graph 1.04, graph 1 left top Left reverse samplen 2.5 spacing 1.5 font ',16' title "tokens" left
set xlabel 'slope of the head' font ',17'
set ylabel 'tiles computed, as a share of all visible tiles' font ',17' offset -1, 0
set logscale y
set xrange [-0.3:7.3]
set yrange [*:1.25]
set ytics ('100 %%' 1, '50 %%' 0.5, '20 %%' 0.2, '10 %%' 0.1, '5 %%' 0.05, '2 %%' 0.02, '1 %%' 0.01, '0.5 %%' 0.005, \
           '0.2 %%' 0.002, '0.1 %%' 0.001, '0.05 %%' 0.0005, '0.02 %%' 0.0002, '0.01 %%' 0.0001)

set palette defined (0 '#00441b', 0.3 '#1b7837', 0.65 '#5aae61', 1 '#a6dba0')
unset colorbox
plot for [c = 2:lengths + 1] table index 'tiles' using 0:c:xtic(1) title columnheader(c) \
  with linespoints linewidth 3.5 pointtype 7 pointsize 1.5 linecolor palette fraction (c - 2) / (lengths - 1.0)
unset output
