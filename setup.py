"""Builds the C library once and the thin Cython modules over it. Everything else stands in pyproject.toml.

RT_SANITIZE=address|undefined|thread builds with that sanitizer, RT_DEBUG=1 poisons slots and checks bounds,
RT_WERROR=1 turns warnings in our own C into errors.
"""
import os
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_clib import build_clib
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
SANITIZE = os.environ.get("RT_SANITIZE", "")
# -fno-schedule-insns: on aarch64 gcc would move every load of an unrolled loop to its front, and spill.
FLAGS = ["-std=gnu11", "-O1" if SANITIZE else "-O3", "-fPIC", "-ffp-contract=off", "-fno-schedule-insns", "-fvisibility=hidden",
         "-fopenmp"]
FEWER = "-O2"
LINK = ["-fopenmp"]
if SANITIZE:
    # The tracking of variables takes longer to compile than all else; checks inside the kernels, and of their scopes, come next.
    FLAGS += [f"-fsanitize={SANITIZE}", "-fno-omit-frame-pointer", "-fno-var-tracking"]
    if "address" in SANITIZE:
        FLAGS += ["-fno-sanitize-address-use-after-scope", "--param", "asan-instrumentation-with-call-threshold=0"]
    LINK += [f"-fsanitize={SANITIZE}"]
elif not os.environ.get("RT_DEBUG"):
    FLAGS += ["-g0"]  # what Python's own flags ask for doubles the time and is stripped from the modules anyway
if os.environ.get("RT_DEBUG"):
    FLAGS += ["-DRT_DEBUG=1"]

OWN = ["-Wall", "-Wextra"] + (["-Werror"] if os.environ.get("RT_WERROR") else [])
MODULES = ["_text", "_weights", "_kernels", "_engine", "_limits"]
# Data (.def, .inc) and headers: any change rebuilds, so that a stale object never hides an error.
HEADERS = [str(p.relative_to(ROOT)) for ext in ("h", "inc", "def") for p in sorted((ROOT / "csrc").rglob(f"*.{ext}"))]
SOURCES = [str(p.relative_to(ROOT)) for p in sorted((ROOT / "csrc").rglob("*.c"))]


class BuildLibrary(build_clib):
    """build_clib that compiles files side by side."""

    def build_libraries(self, libraries):
        from concurrent.futures import ThreadPoolExecutor

        build = self.compiler._compile

        def compile_one(obj, src, ext, cc_args, extra, pp_opts):
            # Plain C kernels at -O3 take four times as long to compile, as long as all else together, and are no faster.
            extra = [FEWER if flag == "-O3" and src.endswith("isa/scalar.c") else flag for flag in extra]
            build(obj, src, ext, cc_args, extra, pp_opts)

        pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1)
        jobs = []
        self.compiler._compile = lambda *a: jobs.append(pool.submit(compile_one, *a))
        link = self.compiler.create_static_lib

        def link_when_compiled(*a, **k):
            for job in jobs:
                job.result()
            jobs.clear()
            return link(*a, **k)

        self.compiler.create_static_lib = link_when_compiled
        super().build_libraries(libraries)


class BuildModules(build_ext):
    """build_ext that builds the library first, also when asked for alone, and the modules side by side."""

    def initialize_options(self):
        super().initialize_options()
        self.parallel = os.cpu_count() or 1

    def run(self):
        self.run_command("build_clib")
        super().run()


# Not plain "rt": the system has a library of that name, and a missing one must not be taken for ours.
library = ("pyruntime_rt", {
    "sources": SOURCES,
    "include_dirs": ["csrc"],
    "cflags": FLAGS + OWN,
    "obj_deps": {"": HEADERS},
})
extensions = [
    Extension(
        f"pyruntime._core.{name}",
        [f"pyruntime/_core/{name}.pyx"],
        include_dirs=["csrc", numpy.get_include()],
        extra_compile_args=[*FLAGS, "-O1"],  # thin wrappers: nothing in them is worth optimizing
        extra_link_args=LINK + ["-Wl,-s"] * (not SANITIZE),
        libraries=["m", "pthread"],
        depends=HEADERS + SOURCES,
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
    )
    for name in MODULES
    if (ROOT / f"pyruntime/_core/{name}.pyx").exists()
]

setup(
    libraries=[library],
    ext_modules=cythonize(extensions, language_level=3, build_dir="build/cython"),
    cmdclass={"build_clib": BuildLibrary, "build_ext": BuildModules},
)
