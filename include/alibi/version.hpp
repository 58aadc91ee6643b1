// The version of the library.
#pragma once

/// The major version: semantic versioning, major.minor.patch. Before 1.0 a minor version may change the interface.
#define ALIBI_VERSION_MAJOR 0
/// The minor version.
#define ALIBI_VERSION_MINOR 3
/// The patch version.
#define ALIBI_VERSION_PATCH 0
