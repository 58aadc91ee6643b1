include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

# Nothing installed depends on the architecture, so everything but the headers goes to share/.
set(config_dir "${CMAKE_INSTALL_DATADIR}/cmake/alibi")
set(pkgconfig_dir "${CMAKE_INSTALL_DATADIR}/pkgconfig")

install(
  DIRECTORY "${PROJECT_SOURCE_DIR}/include/alibi"
  DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
  FILES_MATCHING PATTERN "*.hpp"
)

install(TARGETS alibi EXPORT alibi-targets INCLUDES DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(EXPORT alibi-targets NAMESPACE alibi:: DESTINATION "${config_dir}")

configure_package_config_file(
  cmake/alibi-config.cmake.in alibi-config.cmake
  INSTALL_DESTINATION "${config_dir}"
  NO_SET_AND_CHECK_MACRO
)
write_basic_package_version_file(alibi-config-version.cmake COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(
  FILES "${PROJECT_BINARY_DIR}/alibi-config.cmake" "${PROJECT_BINARY_DIR}/alibi-config-version.cmake"
  DESTINATION "${config_dir}"
)

# The prefix is relative to the .pc file, so that an installed tree can be moved. An absolute include folder of a
# packager replaces the prefix.
file(RELATIVE_PATH pc_prefix "/${pkgconfig_dir}" "/")
cmake_path(APPEND pc_includedir "\${prefix}" "${CMAKE_INSTALL_INCLUDEDIR}")
configure_file(cmake/alibi.pc.in alibi.pc @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/alibi.pc" DESTINATION "${pkgconfig_dir}")
