// The version of the library.
#pragma once

/// Semantic versioning: major.minor.patch. Before 1.0 a minor version may change the interface.
#define ALIBI_VERSION_MAJOR 0
#define ALIBI_VERSION_MINOR 2
#define ALIBI_VERSION_PATCH 0
