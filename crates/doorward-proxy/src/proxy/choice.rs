//! Several models behind one firewall, each with its own proxy: whose a request is.
//!
//! A request goes to the proxy of the model that it names. One that names none of them, or hides
//! which, goes to the strictest, so that the monitoring of one model is no way round the verdicts
//! on another.

use std::sync::Arc;

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::Request;

use super::live::Live;
use super::proxy::Proxy;
use super::screen::unframed;
use doorward_protocol::oip_grpc;

/// The proxies of all models, as they are when a request begins.
#[derive(Clone, Debug)]
pub(super) struct Choice(Arc<[Arc<Proxy>]>);

// === impl Choice ===

impl Choice {
    /// `None` without a model.
    pub(super) fn new(models: &[Arc<Live>]) -> Option<Self> {
        let proxies: Arc<[_]> = models.iter().map(|live| live.current()).collect();
        (!proxies.is_empty()).then_some(Self(proxies))
    }

    /// True if requests have to tell which model they are for.
    pub(super) fn is_plural(&self) -> bool {
        self.0.len() > 1
    }

    /// The proxy for a request over HTTP/1.1: the one that takes its path.
    pub(super) fn of_path<B>(&self, request: &Request<B>) -> &Arc<Proxy> {
        if !self.is_plural() {
            return self.strictest();
        }
        let takes = |proxy: &&Arc<Proxy>| proxy.gate.takes(request.method(), request.uri());
        // What is asked of the server as a whole, all of them take.
        let takers = self.0.iter().filter(takes);
        takers.min_by_key(|proxy| proxy.gate.screen.is_open()).unwrap_or_else(|| self.strictest())
    }

    /// The proxy for a question to the server as a whole, which is ready once all of them are.
    pub(super) fn least_ready(&self) -> &Arc<Proxy> {
        let least = self.0.iter().min_by_key(|proxy| proxy.gate.screen.is_open());
        least.unwrap_or_else(|| self.strictest())
    }

    /// The proxy for a gRPC message in its frame.
    pub(super) fn of_message(&self, headers: &HeaderMap, frame: &Bytes) -> &Arc<Proxy> {
        let strictest = self.strictest();
        if !self.is_plural() {
            return strictest;
        }
        let message = unframed(headers, frame, strictest.gate.limits.body_bytes);
        let name = message.ok().and_then(|message| oip_grpc::model_in(&message));
        let named = self.0.iter().find(|proxy| name.is_some() && proxy.gate.model == name);
        named.unwrap_or(strictest)
    }

    /// The proxy for a request that is nobody's.
    pub(super) fn strictest(&self) -> &Arc<Proxy> {
        let strictest = self.0.iter().min_by_key(|proxy| proxy.gate.screen.leniency());
        strictest.unwrap_or(&self.0[0])
    }
}
