"""The protobuf writer's messages are those of Google's encoder, compiled and not."""

import math

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from streaminfer._internal._protobuf_cy import ProtobufWriter

FIELD = descriptor_pb2.FieldDescriptorProto


@pytest.fixture(scope="module")
def message_class():
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    kind = file.message_type.add(name="M")
    singular = [("u", FIELD.TYPE_UINT64), ("f", FIELD.TYPE_FIXED64), ("d", FIELD.TYPE_DOUBLE)]
    singular += [("t", FIELD.TYPE_STRING), ("b", FIELD.TYPE_BYTES)]
    for number, (name, type_) in enumerate(singular, 1):
        kind.field.add(name=name, number=number, type=type_, label=FIELD.LABEL_OPTIONAL)
    kind.field.add(name="m", number=100, type=FIELD.TYPE_MESSAGE, label=FIELD.LABEL_REPEATED, type_name=".t.M")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.M"))


unsigned = st.integers(0, 2**64 - 1)


@given(u=unsigned, f=unsigned, d=st.floats(allow_nan=False), t=st.text(), b=st.binary())
def test_google_reads_every_kind_of_field(message_class, u, f, d, t, b):
    inner, outer = ProtobufWriter(), ProtobufWriter()
    inner.varint(1, u)
    inner.fixed64(2, f)
    inner.float64(3, d)
    inner.text(4, t)
    inner.data(5, b)
    outer.message(100, inner)
    outer.message(100, inner)

    read = message_class.FromString(bytes(outer))

    expected = message_class(u=u, f=f, d=d, t=t, b=b)
    assert list(read.m) == [expected, expected]


@pytest.mark.uncompiled
def test_bytes_are_those_of_the_specification():
    writer = ProtobufWriter()
    writer.varint(1, 150)
    writer.text(2, "testing")
    assert bytes(writer).hex() == "089601" + "120774657374696e67"
    assert len(writer) == 12
    stream = ProtobufWriter()
    stream.delimited(writer)
    assert bytes(stream) == b"\x0c" + bytes(writer)
    writer.clear()
    writer.float64(1, math.inf)
    assert bytes(writer).hex() == "09000000000000f07f"


@pytest.mark.uncompiled
@pytest.mark.parametrize("value", [-1, 2**64])
def test_out_of_range_is_an_error(value):
    writer = ProtobufWriter()
    with pytest.raises(OverflowError):
        writer.varint(1, value)
    with pytest.raises(OverflowError):
        writer.fixed64(1, value)
