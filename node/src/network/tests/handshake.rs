//! Noise handshakes that no honest peer would shake: names that are not the peer's own, and keys of RSA whose size alone
//! is the attack (CVE-2023-39533). Made by hand, for libp2p signs only what is true.

use super::attack::{assert_serves, server};
use super::flood::field;
use super::wire::{Bytestream, dial, line, propose};
use super::*;
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p::tcp;
use sha2::{Digest as _, Sha256};
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, RingResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, Error, HandshakeState};
use std::time::Instant;
use tokio::net::TcpListener;
use x25519_dalek::{X25519_BASEPOINT_BYTES, x25519};

/// A key of noise's own: what a peer's identity has to sign.
#[derive(Clone, Default)]
struct Static {
    secret: [u8; 32],
    public: [u8; 32],
}

impl Static {
    fn random() -> Self {
        Self::of(rand::random())
    }

    fn of(secret: [u8; 32]) -> Self {
        Self { secret, public: x25519(secret, X25519_BASEPOINT_BYTES) }
    }

    /// What the identity signs.
    fn statement(&self) -> Vec<u8> {
        [b"noise-libp2p-static-key:", &self.public[..]].concat()
    }
}

impl Dh for Static {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, secret: &[u8]) {
        *self = Self::of(secret.try_into().unwrap());
    }

    fn generate(&mut self, _: &mut dyn Random) -> Result<(), Error> {
        *self = Self::random();
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &self.secret
    }

    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), Error> {
        out[..32].copy_from_slice(&x25519(self.secret, public[..32].try_into().unwrap()));
        Ok(())
    }
}

/// Ring's primitives, and the one that ring does not lend.
struct Primitives;

impl CryptoResolver for Primitives {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        RingResolver.resolve_rng()
    }

    fn resolve_dh(&self, _: &DHChoice) -> Option<Box<dyn Dh>> {
        Some(Box::new(Static::default()))
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        RingResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        RingResolver.resolve_cipher(choice)
    }
}

/// What a peer says to prove who it is.
struct Proof {
    own: Static,
    /// Its identity's key, in libp2p's encoding.
    key: Vec<u8>,
    signature: Vec<u8>,
}

impl Proof {
    /// `signer` signs `own`, and `named` is said to have done it.
    fn new(own: Static, named: &Keypair, signer: &Keypair) -> Self {
        let signature = signer.sign(&own.statement()).unwrap();
        Self { own, key: named.public().encode_protobuf(), signature }
    }

    fn payload(&self) -> Vec<u8> {
        [field(0x0a, &self.key), field(0x12, &self.signature)].concat()
    }

    fn builder(&self) -> Builder<'_> {
        let params = "Noise_XX_25519_ChaChaPoly_SHA256".parse().unwrap();
        Builder::with_resolver(params, Box::new(Primitives)).local_private_key(&self.own.secret).unwrap()
    }
}

async fn send(stream: &mut impl Bytestream, message: &[u8]) {
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    // The other end may be gone already: `receive` tells.
    _ = stream.write_all(&[&length, message].concat()).await;
    _ = stream.flush().await;
}

/// The next message, or `None` when the node has closed the connection; at once, not at the deadline of a handshake.
async fn receive(stream: &mut impl Bytestream) -> Option<Vec<u8>> {
    let begun = Instant::now();
    let message = async {
        let mut length = [0; 2];
        stream.read_exact(&mut length).await.ok()?;
        let mut message = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut message).await.ok()?;
        Some(message)
    };
    let message = timeout(DIAL_TIMEOUT, message).await.expect("an answer, or the end");
    assert!(message.is_some() || begun.elapsed() < DIAL_TIMEOUT / 2, "only the deadline has ended it");
    message
}

async fn say(stream: &mut impl Bytestream, noise: &mut HandshakeState, payload: &[u8]) {
    let mut message = vec![0; 65535];
    let length = noise.write_message(payload, &mut message).unwrap();
    send(stream, &message[..length]).await;
}

async fn hear(stream: &mut impl Bytestream, noise: &mut HandshakeState) {
    let message = receive(stream).await.expect("the node's turn");
    noise.read_message(&message, &mut vec![0; 65535]).unwrap();
}

/// Whether the node takes this proof from somebody who dials it: it answers what is proposed next.
async fn is_let_in(node: &Network, proof: &Proof) -> bool {
    let mut stream = dial(node).await;
    propose(&mut stream, "/noise").await;
    let mut noise = proof.builder().build_initiator().unwrap();
    say(&mut stream, &mut noise, &[]).await;
    hear(&mut stream, &mut noise).await;
    say(&mut stream, &mut noise, &proof.payload()).await;
    let mut channel = noise.into_transport_mode().unwrap();
    let proposal = [line("/multistream/1.0.0"), line("/yamux/1.0.0")].concat();
    let mut message = vec![0; 65535];
    let length = channel.write_message(&proposal, &mut message).unwrap();
    send(&mut stream, &message[..length]).await;
    let Some(answer) = receive(&mut stream).await else { return false };
    let length = channel.read_message(&answer, &mut message).unwrap();
    assert!(proposal.starts_with(&message[..length]) && length > 0);
    true
}

/// Whether the node, dialling `named`, takes this proof from whoever is there.
async fn is_believed(node: &Network, named: PeerId, proof: &Proof) -> bool {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let addr = format!("/ip4/127.0.0.1/tcp/{}/p2p/{named}", listener.local_addr().unwrap().port());
    let answer = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = tcp::tokio::TcpStream(stream);
        let mut proposal = [line("/multistream/1.0.0"), line("/noise")].concat();
        stream.read_exact(&mut proposal).await.unwrap();
        stream.write_all(&proposal).await.unwrap();
        let mut noise = proof.builder().build_responder().unwrap();
        hear(&mut stream, &mut noise).await;
        say(&mut stream, &mut noise, &proof.payload()).await;
        hear(&mut stream, &mut noise).await;
        receive(&mut stream).await.is_some()
    };
    let (outcome, goes_on) = tokio::join!(node.connect(addr.parse().unwrap()), answer);
    assert!(goes_on || outcome.is_err());
    outcome.is_ok()
}

#[tokio::test]
async fn nobody_dials_in_under_a_name_that_is_not_his() {
    let (server, block) = server().await;
    let (me, victim) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
    let own = Static::random();
    assert!(is_let_in(&server, &Proof::new(own.clone(), &me, &me)).await, "the handshake is a good one otherwise");
    let forged = Proof::new(own.clone(), &victim, &me);
    // As the victim said it of a key of its own, to somebody who kept it.
    let replayed = Proof { own: own.clone(), ..Proof::new(Static::random(), &victim, &victim) };
    let unsigned = Proof { signature: Vec::new(), ..Proof::new(own.clone(), &victim, &me) };
    let no_key = Proof { key: vec![0xff; 60_000], ..Proof::new(own, &me, &me) };
    for (name, proof) in [("forged", forged), ("replayed", replayed), ("unsigned", unsigned), ("no key", no_key)] {
        assert!(!is_let_in(&server, &proof).await, "{name}");
    }
    assert_serves(&server, &block).await;
    let peers = server.peers().await.unwrap();
    assert!(peers.iter().all(|summary| summary.peer != victim.public().to_peer_id()), "{peers:?}");
}

#[tokio::test]
async fn nobody_answers_a_dial_in_the_place_of_another() {
    let node = node(BlockSource::empty()).await;
    let (me, victim) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
    let (own, named) = (Static::random(), victim.public().to_peer_id());
    let truth = Proof::new(own.clone(), &me, &me);
    assert!(is_believed(&node, me.public().to_peer_id(), &truth).await, "the handshake is a good one otherwise");
    let forged = Proof::new(own.clone(), &victim, &me);
    let replayed = Proof { own, ..Proof::new(Static::random(), &victim, &victim) };
    for (name, proof) in [("somebody else", truth), ("forged", forged), ("replayed", replayed)] {
        assert!(!is_believed(&node, named, &proof).await, "{name}");
    }
    let peers = node.peers().await.unwrap();
    assert!(peers.iter().all(|summary| summary.peer != named), "{peers:?}");
}

/// `value << shift`, as big-endian bytes.
fn shifted(value: u16, shift: usize, length: usize) -> Vec<u8> {
    // Room for the zeros before a value at the very top.
    let mut bytes = vec![0; 4 + length];
    let low = bytes.len() - shift / 8;
    bytes[low - 4..low].copy_from_slice(&(u32::from(value) << (shift % 8)).to_be_bytes());
    bytes.split_off(4)
}

fn minus(mut a: Vec<u8>, b: &[u8]) -> Vec<u8> {
    let mut borrow = false;
    for (a, b) in a.iter_mut().zip(b).rev() {
        let (rest, under) = a.overflowing_sub(*b);
        let (rest, under_again) = rest.overflowing_sub(borrow.into());
        (*a, borrow) = (rest, under || under_again);
    }
    a
}

fn der(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    // None of the lengths here is between 128 and 255.
    if length < [0, 128] { [&[tag, length[1]], body].concat() } else { [&[tag, 0x82], &length[..], body].concat() }
}

/// A key of RSA with so many bits, and its true signature. No prime is looked for: the modulus is made for the signature.
/// With the exponent 3 a signature is right when its cube, modulo `n`, is the padded digest; so `n` is the cube of a
/// number of our choice less the padded digest.
fn rsa(bits: usize) -> Proof {
    // The modulus must be odd, and so the digest.
    let is_odd = |own: &Static| Sha256::digest(own.statement())[31] % 2 == 1;
    let own = std::iter::repeat_with(Static::random).find(is_odd).unwrap();
    let length = bits / 8;
    // SEQUENCE { SEQUENCE { sha256, NULL }, OCTET STRING of the digest }.
    let sha256 = [&[0x06, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1][..], &[5, 0]].concat();
    let digest = [der(0x30, &sha256), der(0x04, &Sha256::digest(own.statement()))].concat();
    let digest = der(0x30, &digest);
    let filler = vec![0xff; length - digest.len() - 3];
    let padded = [&[0, 1], &filler[..], &[0], &digest].concat();
    // A cube that has just so many bits: 27 << 3k, of 5 bits and 3k, or 125 << 3k.
    let (root, cube, top) = if bits % 3 == 2 { (3, 27, 5) } else { (5, 125, 7) };
    let shift = (bits - top) / 3;
    assert_eq!(top + 3 * shift, bits);
    let modulus = minus(shifted(cube, 3 * shift, length), &padded);
    let public = der(0x30, &[der(0x02, &[&[0], &modulus[..]].concat()), der(0x02, &[3])].concat());
    let algorithm = der(0x30, &[0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0]);
    let info = der(0x30, &[algorithm, der(0x03, &[&[0], &public[..]].concat())].concat());
    let key = [&[0x08, 0][..], &field(0x12, &info)].concat();
    Proof { own, key, signature: shifted(root, shift, length) }
}

#[tokio::test]
async fn keys_of_rsa_are_taken_up_to_a_size_and_refused_above_it_however_well_they_sign() {
    let (server, block) = server().await;
    for bits in [2048, 4096, 8192] {
        assert!(is_let_in(&server, &rsa(bits)).await, "{bits} bits");
        let mut wrong = rsa(bits);
        wrong.signature[0] ^= 1;
        assert!(!is_let_in(&server, &wrong).await, "{bits} bits and a wrong signature");
    }
    for bits in [1024, 8200, 16384] {
        assert!(!is_let_in(&server, &rsa(bits)).await, "{bits} bits");
    }
    assert_serves(&server, &block).await;
}
