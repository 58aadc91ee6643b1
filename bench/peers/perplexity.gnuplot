# Perplexity against context length, three types in two programs. pretrained.py sets `table` (the data) and `png` (the
# picture). Letters are large: README shows the picture at half its width.
set encoding utf8
set terminal pngcairo size 1200, 900 font 'DejaVu Sans,24' background 'white'
set output png
set datafile missing '?'

stats table using 1 name 'tokens' nooutput
stats table using 2 name 'perplexity' nooutput
wide = perplexity_max > 2 * perplexity_min
set lmargin 8; set rmargin 3; set tmargin 1; set bmargin 4
set border 3 linewidth 2 linecolor '#606060'
set tics nomirror out scale 0.6
set grid xtics ytics linecolor '#e6e6e6' linewidth 1.5 linetype 1
set logscale x 2
set logscale y
set xrange [tokens_min / 1.15 : tokens_max * 1.2]
set yrange [perplexity_min * (wide ? 0.85 : 0.99) : perplexity_max * (wide ? 1.5 : 1.06)]
set xtics ('512' 512, '1k' 1024, '2k' 2048, '4k' 4096, '8k' 8192, '16k' 16384, '32k' 32768, '64k' 65536)
set ytics (5, 6, 7, 8, 10, 15, 20, 30, 40, 50, 70, 100, 200, 500, 1000)
if (!wide) set ytics autofreq
set xlabel 'context, tokens'
set ylabel 'perplexity per token' offset 0.5, 0
set key top left Left reverse samplen 2.5 spacing 1.15 opaque box linecolor '#d0d0d0' width -4 height 0.4 font ',22'

plot table index 'transformers bfloat16.' using 1:2 title 'transformers, bfloat16' \
       with linespoints linewidth 5 pointtype 5 pointsize 2.2 linecolor '#b2182b', \
     table index 'transformers float16.' using 1:2 title 'transformers, float16' \
       with linespoints linewidth 5 pointtype 9 pointsize 2.4 linecolor '#e08214', \
     table index 'transformers float32.' using 1:2 title 'transformers, float32' \
       with linespoints linewidth 9 pointtype 7 pointsize 3.4 linecolor '#a0a0a0', \
     table index 'alibi float32.' using 1:2 title 'alibi, float32' \
       with linespoints linewidth 7 pointtype 7 pointsize 2.4 linecolor '#1b7837', \
     table index 'alibi bfloat16.' using 1:2 title 'alibi, bfloat16' \
       with linespoints linewidth 4 dashtype 2 pointtype 5 pointsize 1.6 linecolor '#2166ac', \
     table index 'alibi float16.' using 1:2 title 'alibi, float16' \
       with linespoints linewidth 2.5 dashtype 3 pointtype 9 pointsize 1.4 linecolor '#762a83'
unset output
