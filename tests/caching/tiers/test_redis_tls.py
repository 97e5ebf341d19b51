"""TLS between the Redis tier and its server: trusted authorities, and files that are replaced."""

import asyncio
import contextlib
import ssl
import threading

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from redis_server import PATIENT

import streaminfer as si
from streaminfer.caching.tiers import Entry, RedisTier

HOST = "127.0.0.1"


@pytest.fixture(autouse=True)
def _empty(server):
    with server.client() as client:
        client.flushall()


@pytest.fixture
def authorities(tmp_path, monkeypatch):
    """Return a private authority, whose certificate is in ``ca.pem``, and an authority that the system trusts."""
    private, public = trustme.CA(), trustme.CA()
    private.cert_pem.write_to_path(tmp_path / "ca.pem")
    public.cert_pem.write_to_path(tmp_path / "system.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))
    return private, public


@contextlib.asynccontextmanager
async def tls_in_front_of(server, certificate, clients=None):
    """Run a TLS proxy, like stunnel or a mesh, because the server's wheel has no TLS; yield its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        clients.configure_trust(context)
    writers = []

    async def forward(reader, writer):
        writers.append(writer)
        upstream_reader, upstream_writer = await asyncio.open_connection(HOST, server.port)

        async def pump(source, sink):
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(pump(reader, upstream_writer), pump(upstream_reader, writer))

    proxy = await asyncio.start_server(forward, HOST, 0, ssl=context)
    try:
        yield proxy.sockets[0].getsockname()[1]
    finally:
        proxy.close()
        for writer in writers:
            writer.close()
        await asyncio.sleep(0)
        await proxy.wait_closed()


def tier_at(port, **files):
    return RedisTier(f"rediss://{HOST}:{port}", **{name: str(path) for name, path in files.items()}, **PATIENT)


async def scanned(tier):
    try:
        return len(await asyncio.to_thread(lambda: list(tier.scan())))
    except si.BackendError as error:
        return "CERTIFICATE_VERIFY_FAILED" in str(error)


@pytest.mark.parametrize(
    ("authority", "name", "names_authority", "is_trusted"),
    [
        (0, HOST, True, True),
        (0, "127.0.0.9", True, False),
        (0, HOST, False, False),
        (1, HOST, False, True),
        (1, HOST, True, False),
    ],
    ids=["private", "another name", "unknown", "the system's", "the system's, in place of the private one"],
)
def test_only_the_named_authorities_are_trusted(
    server, authorities, tmp_path, authority, name, names_authority, is_trusted
):
    """Puts and the scan of a proof trust only the named authority, or the system's if none is named."""

    async def main():
        files = {"tls_ca": tmp_path / "ca.pem"} if names_authority else {}
        async with (
            tls_in_front_of(server, authorities[authority].issue_cert(name)) as port,
            tier_at(port, **files) as tier,
        ):
            put = await tier.put("k", Entry(value=1, stored_ns=tier.wall_clock()))
            rejected = "CERTIFICATE_VERIFY_FAILED" in tier.statistics().last_error
            return put, rejected, await scanned(tier)

    assert asyncio.run(main()) == ((True, False, 1) if is_trusted else (False, True, True))


def test_replaced_files_apply_to_next_connection(server, authorities, tmp_path):
    """The next connection uses a renewed client certificate, as some are each day, and a replaced authority."""
    private, public = authorities
    mine, ca = tmp_path / "me.pem", tmp_path / "ca.pem"

    def issue(authority):
        authority.issue_cert("me@site").private_key_and_cert_chain_pem.write_to_path(mine)

    async def main():
        found = []
        issue(private)
        async with (
            tls_in_front_of(server, private.issue_cert(HOST), clients=private) as port,
            tier_at(port, tls_ca=ca, tls_certificate=mine, tls_key=mine) as tier,
        ):
            await tier.put("k", Entry(value=1, stored_ns=tier.wall_clock()))
            for replace in (lambda: issue(public), lambda: issue(private), lambda: public.cert_pem.write_to_path(ca)):
                replace()
                found.append(await tier.get("k") is not None)
                await tier._client.connection_pool.disconnect()
                found.append(await tier.get("k") is not None)
        return found

    # an open connection keeps its certificates; the next one reads the files again
    assert asyncio.run(main()) == [True, False, True, True, True, False]


def test_files_are_read_in_another_thread(server, authorities, tmp_path, monkeypatch):
    """Reading the files and making the context, which takes many milliseconds, does not stop the event loop."""
    made = []
    default = ssl.create_default_context

    def create(**options):
        made.append(threading.current_thread())
        return default(**options)

    async def main():
        async with (
            tls_in_front_of(server, authorities[0].issue_cert(HOST)) as port,
            tier_at(port, tls_ca=tmp_path / "ca.pem") as tier,
        ):
            monkeypatch.setattr(ssl, "create_default_context", create)
            return await asyncio.gather(*(tier.put(key, Entry(value=1, stored_ns=tier.wall_clock())) for key in "12"))

    assert asyncio.run(main()) == [True, True]
    assert made
    assert threading.main_thread() not in made


def test_encrypted_private_key_is_rejected_unprompted(server, authorities, tmp_path, monkeypatch):
    """The tier rejects an encrypted private key without a prompt for its password.

    OpenSSL would prompt on the terminal, and the event loop would wait for the input."""
    passwords, load = [], ssl.SSLContext.load_cert_chain

    def spy(context, certfile, keyfile=None, password=None):
        passwords.append(password)
        load(context, certfile, keyfile, password)

    mine, key = tmp_path / "me.pem", tmp_path / "key.pem"
    issued = authorities[0].issue_cert("me@site")
    issued.cert_chain_pems[0].write_to_path(mine)
    plain = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    secret = serialization.BestAvailableEncryption(b"secret")
    key.write_bytes(
        plain.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, secret)
    )

    async def main():
        async with (
            tls_in_front_of(server, authorities[0].issue_cert(HOST)) as port,
            tier_at(port, tls_ca=tmp_path / "ca.pem", tls_certificate=mine, tls_key=key) as tier,
        ):
            monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", spy)
            return await tier.get("k"), tier.statistics().errors, passwords

    assert asyncio.run(main()) == (None, 1, [b""])


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN CERTIFICATE-----\nMIIB"], ids=["missing", "empty", "half"])
@pytest.mark.parametrize("broken", ["ca.pem", "me.pem", "key.pem"])
def test_error_names_the_file_that_is_broken(server, authorities, tmp_path, broken, content):
    """The error of an operation and of a scan names the server and the file, which the text of OpenSSL does not."""
    issued = authorities[0].issue_cert("me@site")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "me.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    if content is None:
        (tmp_path / broken).unlink()
    else:
        (tmp_path / broken).write_bytes(content)
    ca, mine, key = (tmp_path / name for name in ("ca.pem", "me.pem", "key.pem"))

    async def main():
        async with (
            tls_in_front_of(server, authorities[0].issue_cert(HOST)) as port,
            tier_at(port, tls_ca=ca, tls_certificate=mine, tls_key=key) as tier,
        ):
            assert await tier.get("k") is None
            with pytest.raises(si.BackendError) as raised:
                await asyncio.to_thread(list, tier.scan())
            return [text.count(f"{HOST}:{port}") for text in (tier.statistics().last_error, str(raised.value))
                    if str(tmp_path / broken) in text]  # fmt: skip

    assert asyncio.run(main()) == [1, 1]


@pytest.mark.parametrize(
    ("files", "error", "named"),
    [
        ({"tls_key": "key.pem"}, ValueError, "tls_certificate"),
        ({"tls_ca": ""}, TypeError, "tls_ca"),
        ({"tls_certificate": 1}, TypeError, "tls_certificate"),
    ],
)
def test_paths_are_checked(files, error, named):
    with pytest.raises(error, match=named):
        RedisTier("rediss://localhost", **files)
