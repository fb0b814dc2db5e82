"""The contract and its generated code: in step with each other, names kept, nothing promised that is not there."""
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from pyruntime.server import pb
from pyruntime.server.pb import admin_pb2, chat_pb2, common_pb2, generation_pb2, model_pb2, tokenizer_pb2

ROOT = Path(__file__).resolve().parent.parent
MODULES = (admin_pb2, chat_pb2, common_pb2, generation_pb2, model_pb2, tokenizer_pb2)
sys.path.insert(0, str(ROOT / "protos"))
import generate  # noqa: E402

sys.path.pop(0)


def test_generated_code_is_what_the_pinned_generator_makes():
    version = importlib.metadata.version("grpcio-tools")
    if version != generate.PINNED:
        pytest.skip(f"grpcio-tools {version} is installed, the generated code is {generate.PINNED}'s")
    assert generate.generate() == generate.installed()


def test_descriptors_equal_the_protos(tmp_path):
    """Whatever generator is installed: the committed descriptors say what the proto files say."""
    out = tmp_path / "set"
    generate.protoc(f"--descriptor_set_out={out}")
    fresh = {file.name: file for file in descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file}
    assert sorted(fresh) == sorted(m.DESCRIPTOR.name for m in MODULES)
    for module in MODULES:
        committed = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(committed)
        for file in (committed, fresh[committed.name]):
            for message in _messages(file.message_type):
                for field in message.field:
                    field.ClearField("json_name")
        assert committed == fresh[committed.name]


def _messages(messages):
    for message in messages:
        yield message
        yield from _messages(message.nested_type)


def test_the_pin_is_the_test_extras_pin():
    assert f'"grpcio-tools=={generate.PINNED}"' in (ROOT / "pyproject.toml").read_text()


def test_names_stay_pyruntime_v1_and_imports_are_our_own():
    pool = descriptor_pool.Default()
    for module in MODULES:
        assert module.DESCRIPTOR.package == "pyruntime.v1"
        assert module.DESCRIPTOR.name.startswith("pyruntime/v1/")
        assert pool.FindFileByName(module.DESCRIPTOR.name) is module.DESCRIPTOR
        for message in module.DESCRIPTOR.message_types_by_name.values():
            assert getattr(module, message.name).__module__ == module.__name__
    for path in Path(pb.__path__[0]).glob("*.py*"):
        assert not re.search(r"^(import|from) pyruntime\.v1", path.read_text(), re.M), path


def test_protos_keep_the_style():
    """What buf's STANDARD rules ask for that a reader would miss: suffixes, zero values, one response type per rpc."""
    for module in MODULES:
        for name, enum in module.DESCRIPTOR.enum_types_by_name.items():
            prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper()
            assert enum.values_by_number[0].name == f"{prefix}_UNSPECIFIED"
            assert all(v.name.startswith(prefix + "_") for v in enum.values)
        for service in module.DESCRIPTOR.services_by_name.values():
            assert service.name.endswith("Service")
            for method in service.methods:
                assert method.input_type.name == f"{method.name}Request"
                assert method.output_type.name == f"{method.name}Response"


def test_import_of_the_package_needs_no_grpc():
    code = "import pyruntime.types, pyruntime.errors, sys; assert 'grpc' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
