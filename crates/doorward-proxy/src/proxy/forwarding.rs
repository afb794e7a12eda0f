//! Forwarding headers: who asked, so that the model server may believe it.
//!
//! The server sees the firewall as its client, and servers such as uvicorn take the word of a client
//! on this machine. So what reaches them is the firewall's own word, or that of a proxy it trusts.

use std::net::{IpAddr, SocketAddr};

use hyper::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

/// The peer of a request; an extension of each that comes over TCP.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Whose word on the client is believed.
#[derive(Clone, Debug)]
pub struct Forwarding {
    trusted: Vec<IpNet>,
    scheme: HeaderValue,
}

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Begin the names of headers by which proxies say what they were asked.
const PREFIX: &str = "x-forwarded-";

/// Headers by which proxies name the client alone.
const CLIENTS: [&str; 5] =
    ["cf-connecting-ip", "true-client-ip", "x-client-ip", "x-cluster-client-ip", "x-real-ip"];

// === impl Forwarding ===

impl Forwarding {
    /// Believes peers in these networks. Clients come with TLS, or plainly.
    pub fn new(trusted: &[IpNet], tls: bool) -> Self {
        let scheme = HeaderValue::from_static(if tls { "https" } else { "http" });
        Self { trusted: trusted.to_vec(), scheme }
    }

    /// Makes the headers say who asked: what a trusted peer says, and the peer; else the peer alone.
    /// Of one on a Unix socket nothing is said.
    pub(super) fn settle(&self, headers: &mut HeaderMap, peer: Option<Peer>) {
        let peer = peer.map(|Peer(address)| address.ip().to_canonical());
        let trusted = peer.is_some_and(|peer| self.trusts(peer));
        let mut clients = Vec::new();
        if trusted {
            clients.extend(headers.get_all(FORWARDED_FOR).iter().cloned());
        } else {
            let said = |name: &&HeaderName| {
                name.as_str().starts_with(PREFIX)
                    || **name == FORWARDED
                    || CLIENTS.contains(&name.as_str())
            };
            let said: Vec<HeaderName> = headers.keys().filter(said).cloned().collect();
            for name in said {
                headers.remove(name);
            }
        }
        let Some(peer) = peer else { return };
        clients.extend(HeaderValue::from_str(&peer.to_string()));
        let clients: Vec<&[u8]> = clients.iter().map(HeaderValue::as_bytes).collect();
        if let Ok(clients) = HeaderValue::from_bytes(&clients.join(&b", "[..])) {
            headers.insert(FORWARDED_FOR, clients);
        }
        if !headers.contains_key(FORWARDED_PROTO) {
            headers.insert(FORWARDED_PROTO, self.scheme.clone());
        }
    }

    fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(&peer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(peer: Option<&str>, sent: &[(&'static str, &'static str)]) -> Vec<String> {
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().expect("a network"));
        let mut headers = HeaderMap::new();
        for (name, value) in sent {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let peer = peer.map(|peer| Peer(SocketAddr::new(peer.parse().expect("an address"), 1)));
        Forwarding::new(&trusted, false).settle(&mut headers, peer);
        let text = |(name, value): (&HeaderName, &HeaderValue)| {
            format!("{name}: {}", value.to_str().expect("text"))
        };
        let mut headers: Vec<String> = headers.iter().map(text).collect();
        headers.sort();
        headers
    }

    #[test]
    fn strangers_are_not_believed() {
        let forged = [
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "other"),
            ("forwarded", "for=203.0.113.9"),
            ("x-real-ip", "203.0.113.9"),
            ("accept", "*/*"),
        ];
        let own = ["accept: */*", "x-forwarded-for: 127.0.0.2", "x-forwarded-proto: http"];
        assert_eq!(settled(Some("127.0.0.2"), &forged), own);
        assert_eq!(settled(Some("::ffff:127.0.0.2"), &forged), own);
        assert_eq!(settled(None, &forged), ["accept: */*"]);
    }

    #[test]
    fn trusted_proxies_are_believed_and_named() {
        let said = [
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-for", "198.51.100.7, 10.1.1.1"),
            ("x-forwarded-proto", "https"),
        ];
        for peer in ["10.2.3.4", "::ffff:10.2.3.4"] {
            assert_eq!(
                settled(Some(peer), &said),
                [
                    "x-forwarded-for: 203.0.113.9, 198.51.100.7, 10.1.1.1, 10.2.3.4",
                    "x-forwarded-proto: https"
                ]
            );
        }
        assert_eq!(settled(Some("fd00::1"), &[])[0], "x-forwarded-for: fd00::1");
    }
}
