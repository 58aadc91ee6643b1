# Header-only, from the clone that this port lies in, as an overlay:
#     vcpkg install alibi --overlay-ports=cmake/vcpkg
#     cmake -B build -DCMAKE_TOOLCHAIN_FILE="$VCPKG_ROOT/scripts/buildsystems/vcpkg.cmake"   # find_package(alibi)
set(VCPKG_BUILD_TYPE release)
get_filename_component(SOURCE_PATH "${CMAKE_CURRENT_LIST_DIR}/../.." ABSOLUTE)

vcpkg_cmake_configure(
  SOURCE_PATH "${SOURCE_PATH}"
  OPTIONS
    -DALIBI_INSTALL=ON
    -DALIBI_BUILD_TESTS=OFF
    -DALIBI_BUILD_BENCHMARKS=OFF
    -DALIBI_BUILD_EXAMPLES=OFF
)
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(CONFIG_PATH share/cmake/alibi)
vcpkg_fixup_pkgconfig()

vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")
