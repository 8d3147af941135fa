"""Fetches everything that the Workload API has, with the
Python library spiffe: client.py ADDRESS ID."""
import sys

from spiffe import WorkloadApiClient

address, want = sys.argv[1:]
address = address.replace("unix:///", "unix:/")
with WorkloadApiClient(address) as client:
    svid = client.fetch_x509_svid()
    assert str(svid.spiffe_id) == want, svid.spiffe_id
    context = client.fetch_x509_context()
    assert str(context.default_svid.spiffe_id) == want
    domain = svid.spiffe_id.trust_domain
    assert len(client.fetch_x509_bundles().get_bundle_for_trust_domain(domain).x509_authorities) == 1
    token = client.fetch_jwt_svid(audience={"db"})
    assert str(token.spiffe_id) == want
    keys = client.fetch_jwt_bundles().get_bundle_for_trust_domain(domain)
    assert len(keys.jwt_authorities) == 1
    assert str(client.validate_jwt_svid(token.token, "db").spiffe_id) == want
    try:
        client.validate_jwt_svid(token.token, "other")
    except Exception:
        pass
    else:
        raise AssertionError("a token for another audience is valid")
print("OK")
