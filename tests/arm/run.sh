#!/usr/bin/env bash
# Builds main.cpp for 64-bit ARM and runs it in an emulator: the kernels of NEON, without such a machine. Arguments go to
# the program, such as --gtest_filter='forward_half.*'.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../cmake/setup.sh"

# Packages whose programs have other names.
packages=()
command -v aarch64-linux-gnu-g++ >/dev/null || packages+=(g++-aarch64-linux-gnu)
command -v qemu-aarch64-static >/dev/null || packages+=(qemu-user-static)
require libgtest-dev pkg-config "${packages[@]}"

# Eigen's headers and GoogleTest's sources are the same for every processor.
read -r eigen < <(pkg-config --cflags-only-I eigen3)
gtest=/usr/src/googletest/googletest
out=$root/build/arm
mkdir -p "$out"

warnings=(-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion)
[ "${ALIBI_WERROR:-OFF}" = OFF ] || warnings+=(-Werror)

compile() {
  aarch64-linux-gnu-g++ -std=c++20 -O1 -isystem "$gtest/include" -I "$gtest" -c "$gtest/src/gtest-all.cc" \
    -o "$out/gtest.o" &
  aarch64-linux-gnu-g++ -std=c++20 -O2 "${warnings[@]}" -I "$root/include" -I "$root/tests/support" \
    -isystem "${eigen#-I}" -isystem "$gtest/include" -c "$root/tests/arm/main.cpp" -o "$out/main.o" &&
    wait $! && aarch64-linux-gnu-g++ "$out/main.o" "$out/gtest.o" -o "$out/main"
}
run_step "build for ARM" compile

echo "==> run on ARM"
qemu-aarch64-static -L /usr/aarch64-linux-gnu "$out/main" --gtest_brief=1 "$@" </dev/null
