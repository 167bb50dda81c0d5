//! Authentication and encryption of a connection: noise, which reads the connection in large pieces.
//!
//! libp2p's noise asks for 8 KiB at a time. Each such call into the kernel has TCP answer the sender, and both sides do
//! little else; so a buffer stands between.

use futures::io::BufReader;
use futures::{AsyncRead, AsyncWrite};
use libp2p::core::UpgradeInfo;
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade};
use libp2p::identity::Keypair;
use libp2p::{PeerId, noise};

/// Bytes of the buffer: one message of noise.
const READ: usize = 64 << 10;

/// Noise over a buffered connection.
#[derive(Clone)]
pub(super) struct Noise(noise::Config);

impl Noise {
    /// Proves to be the owner of `keypair`.
    pub(super) fn new(keypair: &Keypair) -> Result<Self, noise::Error> {
        noise::Config::new(keypair).map(Self)
    }
}

impl UpgradeInfo for Noise {
    type Info = <noise::Config as UpgradeInfo>::Info;
    type InfoIter = <noise::Config as UpgradeInfo>::InfoIter;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.protocol_info()
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> InboundConnectionUpgrade<C> for Noise {
    type Output = (PeerId, noise::Output<BufReader<C>>);
    type Error = noise::Error;
    type Future = <noise::Config as InboundConnectionUpgrade<BufReader<C>>>::Future;

    fn upgrade_inbound(self, connection: C, info: Self::Info) -> Self::Future {
        self.0.upgrade_inbound(BufReader::with_capacity(READ, connection), info)
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> OutboundConnectionUpgrade<C> for Noise {
    type Output = (PeerId, noise::Output<BufReader<C>>);
    type Error = noise::Error;
    type Future = <noise::Config as OutboundConnectionUpgrade<BufReader<C>>>::Future;

    fn upgrade_outbound(self, connection: C, info: Self::Info) -> Self::Future {
        self.0.upgrade_outbound(BufReader::with_capacity(READ, connection), info)
    }
}
