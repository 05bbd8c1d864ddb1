"""What pyproject.toml cannot say: two folders of a checkout are part of the installed package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["sgm", "sgm.*"]), "sgm.configs", "sgm.pretrained"],
    package_dir={"sgm.configs": "configs", "sgm.pretrained": "pretrained"},
)
