//! The EndpointSlices of the open set.
//!
//! [`layout`] spreads pods over slices so that few slices change, [`plan`] says what to write and delete and in which
//! order, [`object`] builds and reads the objects, `store` talks to the API server.

pub mod layout;
pub mod object;
pub mod plan;
pub(crate) mod store;

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::pods::Pod;

/// A family of addresses. A slice holds one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// As the API spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The family that the API spells like this.
    pub fn named(name: &str) -> Option<Self> {
        [Self::V4, Self::V6].into_iter().find(|family| family.name() == name)
    }

    /// The address of `pod` in this family.
    pub fn address(self, pod: &Pod) -> Option<IpAddr> {
        match self {
            Self::V4 => pod.v4.map(IpAddr::V4),
            Self::V6 => pod.v6.map(IpAddr::V6),
        }
    }
}

/// One pod in a slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Where it listens.
    pub address: IpAddr,
    /// The name of the pod.
    pub pod: String,
    /// The machine that it runs on.
    pub node: Option<String>,
    /// The zone of that machine.
    pub zone: Option<String>,
}

impl Endpoint {
    /// The endpoint of `pod` in `family`, if it has an address there.
    pub fn of(pod: &Pod, family: Family) -> Option<Self> {
        let address = family.address(pod)?;
        Some(Self { address, pod: pod.name.clone(), node: pod.node.clone(), zone: pod.zone.clone() })
    }
}

/// The endpoints of a slice, by the uid of their pod.
pub type Endpoints = BTreeMap<String, Endpoint>;

/// What all slices of a Service have in common.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// The name of the Service.
    pub service: String,
    /// Its uid: slices go when it goes.
    pub service_uid: String,
    /// Its ports, as pods have them.
    pub ports: Vec<Port>,
    /// The term of the writer.
    pub term: u32,
}

/// A port of every endpoint of a slice.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Port {
    /// The name in the Service; empty if it has none.
    pub name: String,
    /// Where pods listen.
    pub number: u16,
    /// `TCP`, as a rule.
    pub protocol: String,
    /// What is spoken there, if the Service says so.
    pub application: Option<String>,
}
