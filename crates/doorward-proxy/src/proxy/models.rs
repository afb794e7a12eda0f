//! The proxies of all models of a process, as its listeners see them.

use std::sync::Arc;

use hyper::Request;
use hyper::body::Incoming;
use tokio::sync::watch;

use super::choice::Choice;
use super::error::Error;
use super::forwarding::{Forwarding, Peer};
use super::gate::Answer;
use super::grpc_body::GrpcAnswer;
use super::live::Live;

/// One [`Live`] a model, at least one.
#[derive(Debug)]
pub struct Models {
    models: Vec<Arc<Live>>,
    forwarding: Forwarding,
    draining: watch::Sender<bool>,
}

// === impl Models ===

impl Models {
    /// Requests go to the model that they name. A single one gets all of them.
    pub fn new(models: Vec<Arc<Live>>, forwarding: Forwarding) -> Result<Self, Error> {
        match Choice::new(&models) {
            Some(_) => Ok(Self { models, forwarding, draining: watch::Sender::new(false) }),
            None => Err(Error::Models),
        }
    }

    /// Answers one request.
    pub async fn handle(&self, mut request: Request<Incoming>) -> Answer {
        self.name_client(&mut request);
        let proxy = Arc::clone(self.choice().of_path(&request));
        proxy.handle(request).await
    }

    /// Answers one gRPC call.
    pub async fn handle_grpc(&self, mut request: Request<Incoming>) -> GrpcAnswer {
        self.name_client(&mut request);
        self.choice().handle_grpc(request, self.draining.subscribe()).await
    }

    /// Streams read no further message from now on.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }

    fn name_client(&self, request: &mut Request<Incoming>) {
        let peer = request.extensions().get::<Peer>().copied();
        self.forwarding.settle(request.headers_mut(), peer);
    }

    fn choice(&self) -> Choice {
        Choice::new(&self.models).expect("there is a model")
    }
}
