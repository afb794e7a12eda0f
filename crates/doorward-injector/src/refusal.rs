//! Why a pod does not get the sidecar. A pod that asked for it is never left without one in
//! silence.

/// Why a pod that asks for the sidecar cannot have it, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// An annotation does not say what it should.
    #[error("annotation {name} is {received:?}, expected {expected}")]
    Annotation {
        /// Its key.
        name: String,
        /// Its value.
        received: String,
        /// The values that it may have.
        expected: String,
    },
    /// Several containers could be the model server.
    #[error(
        "containers {} could each be the model server: name one by doorward.dev/container",
        names.join(", ")
    )]
    AmbiguousContainer {
        /// Their names.
        names: Vec<String>,
    },
    /// Several ports could be the one to inspect.
    #[error(
        "container {container} has ports {}: name the one to inspect by doorward.dev/{annotation}",
        ports.join(", ")
    )]
    AmbiguousPort {
        /// The container.
        container: String,
        /// Its ports.
        ports: Vec<String>,
        /// A name of one.
        annotation: &'static str,
    },
    /// The pod shares the node's network, where nothing keeps clients from the app.
    #[error("hostNetwork is true: clients could reach the app beside the sidecar")]
    HostNetwork,
    /// There is nothing to calibrate with.
    #[error(
        "neither an artifact nor images to calibrate with: set doorward.dev/artifact, or doorward.dev/clean-images"
    )]
    NoArtifact,
    /// The named container is not there.
    #[error("there is no container {name}; there are {}", names.join(", "))]
    NoContainer {
        /// The annotation's.
        name: String,
        /// The ports that are there.
        names: Vec<String>,
    },
    /// No model is named.
    #[error(
        "no model: set doorward.dev/model to the ONNX file that the pod serves, or doorward.dev/inject: \"false\" to leave it as it is"
    )]
    NoModel,
    /// The container declares no port.
    #[error("container {container} declares no TCP port: set doorward.dev/{annotation}")]
    NoPort {
        /// The container.
        container: String,
        /// A name of one.
        annotation: &'static str,
    },
    /// The file is in no volume of the app's.
    #[error(
        "annotation {annotation}: {path} is in no volume that container {container} mounts; pvc://CLAIM/PATH names one that it does not mount"
    )]
    NotMounted {
        /// The annotation.
        annotation: &'static str,
        /// Its value.
        path: String,
        /// The app's container.
        container: String,
    },
    /// The document is no pod.
    #[error("{path} is {received}, expected {expected}")]
    NotAPod {
        /// The place in the document.
        path: String,
        /// The value that is there.
        received: &'static str,
        /// The value that should be there.
        expected: &'static str,
    },
    /// Services that name the port by its number would pass the sidecar by.
    #[error(
        "port {port} of container {container} has no name, and the server cannot be moved off it: name the port and have Services target the name; or have the app listen on another port and say so by doorward.dev/app-port; or name the server by doorward.dev/server"
    )]
    NumericPort {
        /// The container.
        container: String,
        /// The port.
        port: u16,
    },
    /// A plain container would keep the pod from ending.
    #[error(
        "a pod with restartPolicy {policy} would never end beside a plain container: use doorward.dev/sidecar: \"native\""
    )]
    NeverEnds {
        /// The pod's.
        policy: String,
    },
    /// Something else has the sidecar's name.
    #[error("the pod has a {what} named {name} that is not the sidecar's")]
    NameTaken {
        /// Container or volume.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A port that the sidecar needs is in use.
    #[error("port {port}, which the sidecar needs, is container {container}'s")]
    PortTaken {
        /// The port.
        port: u16,
        /// Its owner.
        container: String,
    },
    /// Knative's proxy goes to the app's port by its number.
    #[error(
        "Knative's queue-proxy goes to port {port} by its number, and the server cannot be moved off it: name the server by doorward.dev/server, or have the app listen on another port and say so by doorward.dev/app-port"
    )]
    QueueProxy {
        /// The app's port.
        port: u16,
    },
    /// The container comes from a ServingRuntime, which the manifest does not show.
    #[error(
        "the predictor's container comes from a ServingRuntime that is not in this manifest: let `doorward webhook` inject into its pods"
    )]
    ServingRuntime,
    /// The settings in the annotations are not valid together.
    #[error("the sidecar's settings are invalid: {reason}")]
    Settings {
        /// The fault.
        reason: String,
    },
    /// Not Linux.
    #[error("spec.os.name is {name:?}: the sidecar runs on Linux")]
    System {
        /// The pod's.
        name: String,
    },
}
