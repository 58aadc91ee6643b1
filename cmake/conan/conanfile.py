# Header-only, from the clone that this recipe lies in:
#     conan create cmake/conan -s compiler.cppstd=20 --build=missing
#     conan install --requires='alibi/[~0.3]' -s compiler.cppstd=20 -g CMakeDeps -g CMakeToolchain
import os
import re

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.files import copy, load
from conan.tools.layout import basic_layout

required_conan_version = ">=2.0"


class AlibiConan(ConanFile):
    name = "alibi"
    description = "Attention with linear biases (ALiBi) over Eigen, header-only"
    license = "MIT"
    topics = ("attention", "alibi", "transformer", "eigen", "header-only")
    package_type = "header-library"
    settings = "os", "compiler", "build_type", "arch"
    no_copy_source = True

    @property
    def _clone(self):
        return os.path.join(self.recipe_folder, "..", "..")

    def set_version(self):
        text = load(self, os.path.join(self._clone, "include", "alibi", "version.hpp"))
        self.version = ".".join(re.findall(r"ALIBI_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", text))

    def export_sources(self):
        copy(self, "include/alibi/*.hpp", self._clone, self.export_sources_folder)
        copy(self, "LICENSE", self._clone, self.export_sources_folder)

    def layout(self):
        basic_layout(self)

    def requirements(self):
        self.requires("eigen/[>=3.4.0]", transitive_headers=True)

    def package_id(self):
        self.info.clear()

    def validate(self):
        check_min_cppstd(self, 20)

    def package(self):
        copy(self, "*.hpp", os.path.join(self.source_folder, "include"), os.path.join(self.package_folder, "include"))
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))

    def package_info(self):
        self.cpp_info.bindirs = []
        self.cpp_info.libdirs = []
        self.cpp_info.set_property("cmake_file_name", "alibi")
        self.cpp_info.set_property("cmake_target_name", "alibi::alibi")
        self.cpp_info.set_property("pkg_config_name", "alibi")
