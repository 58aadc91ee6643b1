# Bytes that a rank receives against the number of ranks. Run by run.sh, which sets `table`, the data, and `png`.
set encoding utf8
set terminal pngcairo size 1300, 850 font 'DejaVu Sans,15' background 'white'
set output png
set title "{/=20 Context parallelism: bytes that a rank receives}\n{/=4  }\n" \
  . '{/=15 causal, 8 heads of 64, float, 8,192 tokens a rank, random q and k}' offset 0, 0.6
set lmargin 12; set rmargin 5; set tmargin 6; set bmargin 5
set border 3 linewidth 1.5 linecolor '#606060'
set tics nomirror out scale 0.6
set grid xtics ytics linecolor '#e6e6e6' linewidth 1 linetype 1
set key top left Left reverse samplen 3 spacing 1.35 font ',16'
set xlabel 'ranks' font ',17'
set ylabel 'MB received by a rank in one call' font ',17' offset -1, 0
set logscale xy 2
set logscale y 10
set xtics (2, 4, 8, 16, 32, 64, 128, 256)
set xrange [1.7 : 165]
set yrange [1 : *]
plot table using 1:($6 / 1e6) title 'ring attention: all keys and values' \
       with linespoints linewidth 3.5 pointtype 9 pointsize 1.9 linecolor '#b2182b', \
     table using 1:($5 / 1e6) title 'alibi: what the certificate cannot rule out, default tolerance' \
       with linespoints linewidth 4.5 pointtype 7 pointsize 1.8 linecolor '#1b7837', \
     table using 1:($5 / 1e6):(sprintf('%.0f ×', $6 / $5)) notitle \
       with labels offset 0, 1.2 font ',15' textcolor '#1b7837'
unset output
