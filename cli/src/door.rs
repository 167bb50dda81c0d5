//! The one decision that every verb shares: which node answers.
//!
//! A running `serve` answers on its control socket. Where none does, this process opens the store and
//! answers itself, over a pipe. Either way the verb speaks the same protocol.

use nipfs_node::control::client::Client;
use nipfs_node::control::frame::pair;
use nipfs_node::control::protocol::{Class, Failure};
use nipfs_node::{Node, Settings};
use std::path::PathBuf;

/// The node that answers this command.
#[derive(Debug, Clone)]
pub(crate) enum Door {
    /// The `serve` that owns this state directory.
    Remote(PathBuf),
    /// This process.
    Here(Node),
}

impl Door {
    /// Knocks at the socket of the state directory; opens the store here, with these settings, when nobody answers.
    ///
    /// # Errors
    /// Class `InUse` when another process has the store open and does not serve.
    pub(crate) async fn open(settings: Settings) -> Result<Self, Failure> {
        if Client::connect(&settings.state).await?.is_some() {
            return Ok(Self::Remote(settings.state));
        }
        let opened = Node::open(settings).await.map_err(|failure| match failure {
            Failure { class: Class::InUse, hint: None, .. } => {
                failure.hint("wait for the other nipfs to end; with `nipfs serve` running, verbs share its store")
            }
            failure => failure,
        });
        Ok(Self::Here(opened?))
    }

    /// A new connection. What is staged on it lives as long as it does.
    ///
    /// # Errors
    /// When `serve` has ended since.
    pub(crate) async fn client(&self) -> Result<Client, Failure> {
        match self {
            Self::Here(node) => {
                let (near, far) = pair();
                let node = node.clone();
                // Ends when the client is dropped, which closes the pipe.
                tokio::spawn(async move { node.handle(far).await });
                Ok(Client::over(near))
            }
            Self::Remote(state) => {
                let ended = || Failure::new(Class::Failed, format!("no node serves any more: {}", state.display()));
                Client::connect(state).await?.ok_or_else(ended)
            }
        }
    }

    /// Who answers, for a person.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Here(node) => format!("this process answers for {}", node.state().display()),
            Self::Remote(state) => format!("the running serve answers for {}", state.display()),
        }
    }

    /// Ends the node that was opened here.
    pub(crate) async fn close(self) {
        if let Self::Here(node) = self {
            node.shutdown().await;
        }
    }
}
