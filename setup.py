"""What pyproject.toml cannot say: a wheel carries the quickstart of experiments/."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

QUICKSTART = ["experiments/quickstart.yaml", "experiments/data/openings.jsonl"]


class BuildWithQuickstart(build_py):
    """Copies the quickstart into the built package as rlalign/quickstart/."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # a checkout has experiments/ itself
            return
        for source, built in self.quickstart():
            self.mkpath(str(Path(built).parent))
            self.copy_file(source, built)

    def quickstart(self) -> list[tuple[str, str]]:
        folder = Path(self.build_lib) / "rlalign" / "quickstart"
        return [(source, str(folder / Path(source).name)) for source in QUICKSTART]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return super().get_outputs(include_bytecode) + [built for _, built in self.quickstart()]

    def get_source_files(self) -> list[str]:
        return super().get_source_files() + QUICKSTART


setup(cmdclass={"build_py": BuildWithQuickstart})
