"""The example plans on real and on given measurements, and its manifests can be applied."""

import importlib

import kubernetes_validate
import pytest
import yaml


@pytest.fixture
def place_replicas():
    return importlib.import_module("place_replicas")


def test_example_plans_on_real_measurements(place_replicas, capsys):
    place_replicas.main()

    printed = capsys.readouterr().out
    assert printed.startswith("<RttSamples: 40 clusters, 10 sites, 400 pairs")
    assert "<Plan: " in printed
    documents = list(yaml.safe_load_all(printed[printed.index("apiVersion") :]))
    assert {it["kind"] for it in documents} == {"Deployment", "Service", "ScaledObject"}
    for document in documents:
        if document["kind"] != "ScaledObject":
            kubernetes_validate.validate(document, "1.35", strict=True)


def test_example_names_clients_that_cannot_be_served(place_replicas, tmp_path):
    """The example names a cluster whose round trips of three seconds break a promise of two."""
    file = tmp_path / "rtt.csv"
    file.write_text("cluster,site,rtt_s\n" + "far,away,3.0\n" * 100)

    with pytest.raises(SystemExit, match="cluster 'far'"):
        place_replicas.main(str(file))
