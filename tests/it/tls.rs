//! TLS on either side of the firewall, by real handshakes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use doorward::config::{Identity, UpstreamTls};
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::TokioExecutor;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::grpc::{GrpcSetup, INFER as CALL, RawClient, bytes, framed, raw_request};
use crate::support::{CLEAN, INFER, Setup, TRIGGERED, config, eventually, manifest, request};

/// An authority and what it signed, as PEM files.
pub(crate) struct Authority {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("an authority");
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("ca.crt"), issuer.pem()).expect("written");
        Self { folder, issuer }
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    /// Writes a certificate for this machine and its key.
    pub(crate) fn issue(&self, name: &str) -> Identity {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let key = KeyPair::generate().expect("a key");
        let certificate = CertificateParams::new(names)
            .and_then(|params| params.signed_by(&key, &self.issuer))
            .expect("a certificate");
        let path = |suffix: &str| self.folder.path().join(format!("{name}.{suffix}"));
        std::fs::write(path("crt"), certificate.pem()).expect("written");
        std::fs::write(path("key"), key.serialize_pem()).expect("written");
        Identity { certificate: path("crt"), key: path("key") }
    }
}

fn server_settings(identity: &Identity, client_ca: Option<&Path>) -> String {
    let client_ca = client_ca.map(|path| format!("client_ca = '{}'\n", path.display()));
    format!(
        "[tls]\ncertificate = '{}'\nkey = '{}'\n{}",
        identity.certificate.display(),
        identity.key.display(),
        client_ca.unwrap_or_default(),
    )
}

/// The status of one inference over a new TLS connection, or why there is none.
async fn infer(
    setup: &Setup,
    ca: &Path,
    identity: Option<Identity>,
    row: [f32; 4],
) -> Result<StatusCode, String> {
    let settings = UpstreamTls { ca: ca.to_owned(), identity };
    let tls = doorward_proxy::tls::client(Some(&settings)).expect("settings");
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_only()
        .enable_http1()
        .build();
    let client: HttpClient<_, Full<Bytes>> =
        HttpClient::builder(TokioExecutor::new()).build(connector);
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("https://{}{INFER}", setup.server.proxy_addr()))
        .body(Full::new(request(&[row]).into()))
        .expect("a request");
    let answer = client.request(request).await.map_err(|error| format!("{error:?}"))?;
    let status = answer.status();
    answer.into_body().collect().await.map_err(|error| error.to_string())?;
    Ok(status)
}

/// What ends a connection that has no certificate and asks for nothing. Its own half of the handshake is over before the
/// server has judged it, so a request may fail by this alert or because the connection is gone by then.
async fn alert(setup: &Setup, ca: &Path) -> String {
    let settings = UpstreamTls { ca: ca.to_owned(), identity: None };
    let tls = doorward_proxy::tls::client(Some(&settings)).expect("settings");
    let stream = TcpStream::connect(setup.proxy_tcp()).await.expect("a connection");
    let name = "localhost".try_into().expect("a name");
    let mut stream = match TlsConnector::from(Arc::new(tls)).connect(name, stream).await {
        Ok(stream) => stream,
        Err(error) => return error.to_string(),
    };
    stream.read(&mut [0; 16]).await.expect_err("an alert").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_connect_by_tls_and_only_to_whom_they_trust() {
    let (authority, other) = (Authority::new(), Authority::new());
    let setup = Setup::new(&server_settings(&authority.issue("server"), None)).await;
    assert_eq!(infer(&setup, &authority.ca(), None, CLEAN).await, Ok(StatusCode::OK));
    assert_eq!(infer(&setup, &authority.ca(), None, TRIGGERED).await, Ok(StatusCode::FORBIDDEN));
    let refused = infer(&setup, &other.ca(), None, CLEAN).await.expect_err("another authority");
    assert!(refused.contains("InvalidCertificate"), "{refused}");
    // Plain HTTP gets no answer, and a connection that never says anything holds up no other one.
    let plain = setup.raw("GET /v2 HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(!plain.contains("HTTP/1.1 200"), "{plain}");
    let mut silent = TcpStream::connect(setup.proxy_tcp()).await.expect("a connection");
    assert_eq!(infer(&setup, &authority.ca(), None, CLEAN).await, Ok(StatusCode::OK));
    // Nor does it hold up the end.
    let start = std::time::Instant::now();
    setup.server.shutdown().await.expect("nothing is in flight");
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    let _ = silent.read(&mut [0; 16]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mutual_tls_refuses_clients_without_a_certificate_of_the_authority() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let settings = server_settings(&authority.issue("server"), Some(&clients.ca()));
    let setup = Setup::new(&settings).await;
    let ca = authority.ca();
    let known = infer(&setup, &ca, Some(clients.issue("client")), CLEAN).await;
    assert_eq!(known, Ok(StatusCode::OK));
    infer(&setup, &ca, None, CLEAN).await.expect_err("no certificate");
    let alert = alert(&setup, &ca).await;
    assert!(alert.contains("CertificateRequired"), "{alert}");
    let unknown = infer(&setup, &ca, Some(authority.issue("client")), CLEAN).await;
    unknown.expect_err("a certificate of another authority");
    assert_eq!(setup.verdicts("passed"), 1.0);
}

/// The status of one inference over gRPC and a new TLS connection, or why there is none.
async fn infer_grpc(
    setup: &GrpcSetup,
    ca: &Path,
    identity: Option<Identity>,
    row: [f32; 4],
) -> Result<String, String> {
    let settings = UpstreamTls { ca: ca.to_owned(), identity };
    let tls = doorward_proxy::tls::client(Some(&settings)).expect("settings");
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_only()
        .enable_http2()
        .build();
    let client: HttpClient<_, Full<Bytes>> =
        HttpClient::builder(TokioExecutor::new()).http2_only(true).build(connector);
    let address = setup.setup.server.grpc_addr().expect("a listener for calls");
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("https://{address}{CALL}"))
        .header("content-type", "application/grpc")
        .body(Full::new(framed(0, &bytes(&raw_request(&[row]))).into()))
        .expect("a request");
    let answer = client.request(request).await.map_err(|error| format!("{error:?}"))?;
    let (parts, body) = answer.into_parts();
    let body = body.collect().await.map_err(|error| error.to_string())?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    let status = trailers.get("grpc-status").or_else(|| parts.headers.get("grpc-status"));
    Ok(status.expect("a status").to_str().expect("text").to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_is_asked_in_http2_over_tls() {
    let authority = Authority::new();
    // What stands for the model server has HTTP/2 only, for calls, and answers in their way.
    let model = GrpcSetup::new(&server_settings(&authority.issue("server"), None)).await;
    let address = model.setup.server.grpc_addr().and_then(|address| address.tcp());
    let url = format!("https://localhost:{}", address.expect("a port").port());
    for (http2, status) in [(true, StatusCode::OK), (false, StatusCode::BAD_GATEWAY)] {
        let settings =
            format!("upstream.http2 = {http2}\nupstream.tls.ca = '{}'", authority.ca().display());
        let front = config(&url, &settings);
        let server = doorward_proxy::server::Server::bind(&front.server).await.expect("free ports");
        server.ready(model.setup.judge.clone(), &manifest()).expect("the first detector");
        let client = crate::support::Client::new(&format!("http://{}", server.proxy_addr()));
        let answer = client.infer(request(&[CLEAN])).await;
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(!http2 || answer.headers["grpc-status"] == "12", "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_have_tls_on_both_sides_and_reloaded_certificates() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let identity = authority.issue("server");
    let settings = server_settings(&identity, Some(&clients.ca()));
    let model = GrpcSetup::new(&settings).await;
    let client = clients.issue("client");
    let known = || Some(clients.issue("another"));
    let passed = infer_grpc(&model, &authority.ca(), known(), CLEAN).await;
    assert_eq!(passed.as_deref(), Ok("0"));
    let rejected = infer_grpc(&model, &authority.ca(), known(), TRIGGERED).await;
    assert_eq!(rejected.as_deref(), Ok("7"));
    infer_grpc(&model, &authority.ca(), None, CLEAN).await.expect_err("no certificate");

    // What stands for the model server is that firewall.
    let port =
        model.setup.server.grpc_addr().and_then(|address| address.tcp()).expect("a port").port();
    let settings = |ca: &Path| {
        format!(
            "listen.grpc = '127.0.0.1:0'\nupstream.grpc_url = 'https://localhost:{port}'\n\
             upstream.tls = {{ ca = '{}', certificate = '{}', key = '{}' }}",
            ca.display(),
            client.certificate.display(),
            client.key.display(),
        )
    };
    let front = config("http://127.0.0.1:1", &settings(&authority.ca()));
    let server = doorward_proxy::server::Server::bind(&front.server).await.expect("free ports");
    server.ready(model.setup.judge.clone(), &manifest()).expect("the first detector");
    let address = server.grpc_addr().expect("a listener for calls");
    let raw = RawClient::new(&format!("http://{address}"));
    let message = bytes(&raw_request(&[CLEAN]));
    assert_eq!(raw.infer(message.clone()).await.status, 0);
    eventually("it arrived", || model.verdicts("passed") == 2.0).await;
    server
        .handle()
        .reload(&config("http://127.0.0.1:1", &settings(&clients.ca())).server)
        .expect("files");
    assert_eq!(raw.infer(message.clone()).await.status, 14);
    server.handle().reload(&front.server).expect("files");
    assert_eq!(raw.infer(message).await.status, 0);

    let renewed = clients.issue("renewed");
    std::fs::copy(&renewed.certificate, &identity.certificate).expect("copied");
    std::fs::copy(&renewed.key, &identity.key).expect("copied");
    let text = format!(
        "listen.grpc = '127.0.0.1:0'\nupstream.grpc_url = '{}'\n{}",
        model.upstream.url(),
        server_settings(&identity, Some(&clients.ca()))
    );
    let again = config(&model.setup.upstream.url(), &text);
    model.setup.server.handle().reload(&again.server).expect("a new identity");
    let passed = infer_grpc(&model, &clients.ca(), known(), CLEAN).await;
    assert_eq!(passed.as_deref(), Ok("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn new_connections_get_the_new_certificate() {
    let (old, new) = (Authority::new(), Authority::new());
    let identity = old.issue("server");
    let settings = server_settings(&identity, None);
    let setup = Setup::new(&settings).await;
    assert_eq!(infer(&setup, &old.ca(), None, CLEAN).await, Ok(StatusCode::OK));
    let reload = || setup.server.handle().reload(&config(&setup.upstream.url(), &settings).server);

    // A key that is not the certificate's: everything stays.
    let renewed = new.issue("server");
    std::fs::copy(&renewed.key, &identity.key).expect("copied");
    let error = reload().expect_err("half an identity");
    assert!(std::error::Error::source(&error).is_some());
    assert_eq!(infer(&setup, &old.ca(), None, CLEAN).await, Ok(StatusCode::OK));

    std::fs::copy(&renewed.certificate, &identity.certificate).expect("copied");
    reload().expect("a new identity");
    assert_eq!(infer(&setup, &new.ca(), None, CLEAN).await, Ok(StatusCode::OK));
    infer(&setup, &old.ca(), None, CLEAN).await.expect_err("the old certificate is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_upstream_is_reached_by_tls_with_a_client_certificate() {
    let (authority, clients) = (Authority::new(), Authority::new());
    // What stands for the model server is a second firewall in front of one.
    let settings = server_settings(&authority.issue("server"), Some(&clients.ca()));
    let model = Setup::new(&settings).await;
    let client = clients.issue("client");
    let settings = |ca: &Path| {
        format!(
            "upstream.tls = {{ ca = '{}', certificate = '{}', key = '{}' }}",
            ca.display(),
            client.certificate.display(),
            client.key.display(),
        )
    };
    let url = format!("https://localhost:{}", model.proxy_tcp().port());
    let mut setup = Setup::calibrating("").await;
    let front = config(&url, &settings(&authority.ca()));
    let server = doorward_proxy::server::Server::bind(&front.server).await.expect("free ports");
    setup.client = crate::support::Client::new(&format!("http://{}", server.proxy_addr()));
    setup.server = server;
    setup.server.ready(setup.judge.clone(), &manifest()).expect("the first detector");
    assert_eq!(setup.client.infer(request(&[CLEAN])).await.status, StatusCode::OK);
    eventually("it arrived", || model.verdicts("passed") == 1.0).await;

    // An authority that did not sign the model server's certificate.
    setup
        .server
        .handle()
        .reload(&config(&url, &settings(&clients.ca())).server)
        .expect("certificates");
    assert_eq!(setup.client.infer(request(&[CLEAN])).await.status, StatusCode::BAD_GATEWAY);
    assert_eq!(setup.metric("upstream_errors_total{reason=\"unreachable\"}"), 1.0);
    let missing = config(&url, &settings(Path::new("/nowhere/ca.crt")));
    let error = setup.server.handle().reload(&missing.server).expect_err("no such file");
    let error = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(error.contains("/nowhere/ca.crt"), "{error}");
    setup.server.handle().reload(&front.server).expect("certificates");
    assert_eq!(setup.client.infer(request(&[CLEAN])).await.status, StatusCode::OK);
}
