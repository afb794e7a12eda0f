//! The webhook's own certificate, where nobody else looks after it.
//!
//! One authority and one certificate for all replicas, in a Secret. They are made when there are
//! none and again two thirds into their time. The API server is told of a new authority, beside the
//! one before, before anybody serves by it, so that a review finds a certificate that it trusts at
//! any time. The authority's key is thrown away: it signs once.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::{Method, StatusCode};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rcgen::{ExtendedKeyUsagePurpose, KeyUsagePurpose};
use serde_json::{Value, json};

use super::api::{self, Access, Api, Body};
use super::settings::{SelfManaged, Webhook};

/// Looks after the certificate.
#[derive(Debug)]
pub struct Keeper {
    api: Api,
    managed: SelfManaged,
    files: Webhook,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A call of the API failed.
    #[error(transparent)]
    Api(#[from] api::Error),
    /// Other replicas kept changing the same objects.
    #[error("{object} changed each time it was to be written")]
    Contended {
        /// Which.
        object: String,
    },
    /// The Secret is not one of ours.
    #[error("Secret {secret} holds no {key}")]
    Foreign {
        /// Its name.
        secret: String,
        /// The thing that is missing.
        key: &'static str,
    },
    /// No certificate can be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// There is no such MutatingWebhookConfiguration.
    #[error("there is no MutatingWebhookConfiguration {name}")]
    NoConfiguration {
        /// The name.
        name: String,
    },
    /// The files cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which.
        path: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// The content of the Secret, as PEM.
struct Identity {
    authorities: String,
    certificate: String,
    key: String,
}

/// The time that a certificate is valid.
const VALID: Duration = Duration::from_secs(90 * 24 * 3600);

/// The part of that time that has to be left.
const LEFT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Clocks differ.
const BEFORE: Duration = Duration::from_secs(3600);

/// When a certificate is to be made again, seconds since 1970-01-01 UTC.
const RENEW: &str = "doorward.dev/renew-after";

/// The number of tries of a change that others get in between of.
const ATTEMPTS: usize = 8;

// === impl Keeper ===

impl Keeper {
    /// For the webhook with these settings.
    pub fn new(access: Access, managed: SelfManaged, webhook: Webhook) -> Result<Self, Error> {
        Ok(Self { api: Api::new(access)?, managed, files: webhook })
    }

    /// Has a valid certificate in the Secret, its authority in the configuration, and both in the
    /// files.
    pub async fn keep(&self) -> Result<(), Error> {
        let identity = self.secret().await?;
        self.announce(&identity.authorities).await?;
        // The key first: the webhook takes them over when they go together.
        write(&self.files.key, &identity.key)?;
        write(&self.files.certificate, &identity.certificate)
    }

    async fn secret(&self) -> Result<Identity, Error> {
        let SelfManaged { namespace, secret, .. } = &self.managed;
        let all = format!("/api/v1/namespaces/{namespace}/secrets");
        let one = format!("{all}/{secret}");
        for _ in 0..ATTEMPTS {
            let found = self.api.find(&one).await?;
            let before = match &found {
                None => None,
                Some(object) => {
                    let identity = Identity::read(object, secret)?;
                    if !is_due(object) {
                        return Ok(identity);
                    }
                    Some(identity)
                }
            };
            let identity = Identity::make(&self.managed.host, before.as_ref())?;
            let object = identity.object(&self.managed, found.as_ref());
            let (method, path) = match found {
                None => (Method::POST, &all),
                Some(_) => (Method::PUT, &one),
            };
            match self.api.call(method, path, Some(Body::Object(&object))).await {
                Ok(_) => {
                    tracing::info!(secret, "a new certificate");
                    return Ok(identity);
                }
                // Another replica was faster.
                Err(api::Error::Refused { status: StatusCode::CONFLICT, .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::Contended { object: format!("Secret {secret}") })
    }

    /// Has the API server trust the authorities.
    async fn announce(&self, authorities: &str) -> Result<(), Error> {
        let name = &self.managed.configuration;
        let path =
            format!("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{name}");
        let bundle = BASE64_STANDARD.encode(authorities);
        for _ in 0..ATTEMPTS {
            let found = self.api.find(&path).await?;
            let found = found.ok_or_else(|| Error::NoConfiguration { name: name.clone() })?;
            let version = &found["metadata"]["resourceVersion"];
            let mut patch =
                vec![json!({"op": "test", "path": "/metadata/resourceVersion", "value": version})];
            for (index, webhook) in found["webhooks"].as_array().into_iter().flatten().enumerate() {
                if webhook["clientConfig"]["caBundle"] != bundle {
                    let path = format!("/webhooks/{index}/clientConfig/caBundle");
                    patch.push(json!({"op": "add", "path": path, "value": bundle}));
                }
            }
            if patch.len() == 1 {
                return Ok(());
            }
            let patch = Value::Array(patch);
            match self.api.call(Method::PATCH, &path, Some(Body::Patch(&patch))).await {
                Ok(_) => {
                    tracing::info!(configuration = name, "the API server knows the authority");
                    return Ok(());
                }
                // The test failed, or the write did: another one was faster.
                Err(api::Error::Refused {
                    status: StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY,
                    ..
                }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::Contended { object: format!("MutatingWebhookConfiguration {name}") })
    }
}

// === impl Identity ===

impl Identity {
    /// A new authority and a certificate of it; the newest authority before stays trusted.
    fn make(host: &str, before: Option<&Self>) -> Result<Self, rcgen::Error> {
        let now = SystemTime::now();
        let mut authority = CertificateParams::new(Vec::<String>::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let mut certificate = CertificateParams::new(vec![host.to_owned()])?;
        certificate.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        certificate.use_authority_key_identifier_extension = true;
        for (params, name) in
            [(&mut authority, "doorward webhook authority"), (&mut certificate, host)]
        {
            params.distinguished_name.push(DnType::CommonName, name);
            params.not_before = (now - BEFORE).into();
            params.not_after = (now + VALID).into();
        }
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let certificate = certificate.signed_by(&key, &authority)?;
        let mut authorities = authority.pem();
        if let Some(before) = before {
            authorities.push_str(first_certificate(&before.authorities));
        }
        Ok(Self { authorities, certificate: certificate.pem(), key: key.serialize_pem() })
    }

    fn read(object: &Value, secret: &str) -> Result<Self, Error> {
        let part = |key: &'static str| {
            let text =
                object["data"][key].as_str().and_then(|text| BASE64_STANDARD.decode(text).ok());
            let text = text.and_then(|bytes| String::from_utf8(bytes).ok());
            text.ok_or_else(|| Error::Foreign { secret: secret.to_owned(), key })
        };
        Ok(Self {
            authorities: part("ca.crt")?,
            certificate: part("tls.crt")?,
            key: part("tls.key")?,
        })
    }

    /// `found` gives the version that is replaced, and labels that others put there.
    fn object(&self, managed: &SelfManaged, found: Option<&Value>) -> Value {
        let due = SystemTime::now() + VALID - LEFT;
        let due = due.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().to_string();
        let mut metadata = found.map_or_else(|| json!({}), |object| object["metadata"].clone());
        metadata["name"] = json!(managed.secret);
        metadata["namespace"] = json!(managed.namespace);
        if !metadata["annotations"].is_object() {
            metadata["annotations"] = json!({});
        }
        metadata["annotations"][RENEW] = json!(due);
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": metadata,
            "data": {
                "ca.crt": BASE64_STANDARD.encode(&self.authorities),
                "tls.crt": BASE64_STANDARD.encode(&self.certificate),
                "tls.key": BASE64_STANDARD.encode(&self.key),
            },
        })
    }
}

fn is_due(secret: &Value) -> bool {
    let after = secret["metadata"]["annotations"][RENEW].as_str();
    let after = after.and_then(|text| text.parse().ok()).map(Duration::from_secs);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    after.is_none_or(|after| now >= after)
}

fn first_certificate(pem: &str) -> &str {
    const END: &str = "-----END CERTIFICATE-----\n";
    pem.find(END).map_or(pem, |end| &pem[..end + END.len()])
}

/// In one step, readable for its owner alone.
fn write(path: &Path, text: &str) -> Result<(), Error> {
    let failed = |source: std::io::Error| Error::Write { path: path.to_owned(), source };
    if std::fs::read_to_string(path).is_ok_and(|same| same == text) {
        return Ok(());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut file =
        tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new("."))).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}
