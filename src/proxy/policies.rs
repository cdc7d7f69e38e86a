//! Which client certificates does a host ask for, and may this connection carry its requests?
//!
//! A connection is made under one policy, that of the name in its hello (SNI). HTTP lets it carry
//! requests for any host: browsers do so on purpose where a certificate holds both names
//! (RFC 9113 §9.1.1), others to get around a policy. What asks for a certificate of its own therefore is
//! served only on connections that were made under that very policy.

use std::{collections::HashMap, sync::Arc};

use foldhash::fast::RandomState;

use crate::{
    config::{ClientAuth, HostMatch, ListenerTls},
    observe::ClientInfo,
};

/// The policies of a listener by host.
#[derive(Debug)]
pub struct ClientPolicies {
    /// The first is the listener's own; no two are the same.
    distinct: Vec<Option<Arc<ClientAuth>>>,
    exact: HashMap<String, usize, RandomState>,
    /// By what follows `*.`.
    wildcard: HashMap<String, usize, RandomState>,
    /// Of the longest wildcard suffix: no host is looked at beyond them.
    labels: usize,
}

impl ClientPolicies {
    pub fn new(tls: &ListenerTls) -> Self {
        let mut policies = ClientPolicies {
            distinct: vec![tls.client_auth.clone()],
            exact: HashMap::default(),
            wildcard: HashMap::default(),
            labels: 0,
        };
        for each in &tls.hosts {
            let index = policies.index_of(each.client_auth.as_ref());
            match &each.host {
                HostMatch::Exact(name) => _ = policies.exact.insert(name.clone(), index),
                HostMatch::Wildcard(suffix) => {
                    policies.labels = policies.labels.max(suffix.split('.').count());
                    policies.wildcard.insert(suffix.clone(), index);
                }
                HostMatch::Any => {}
            }
        }
        policies
    }

    fn index_of(&mut self, wanted: Option<&Arc<ClientAuth>>) -> usize {
        let same = |each: &Option<Arc<ClientAuth>>| match (each, wanted) {
            (None, None) => true,
            (Some(one), Some(other)) => {
                (&one.ca_file, &one.crl_file, one.mode, one.forward)
                    == (&other.ca_file, &other.crl_file, other.mode, other.forward)
            }
            (Some(_), None) | (None, Some(_)) => false,
        };
        self.distinct.iter().position(same).unwrap_or_else(|| {
            self.distinct.push(wanted.cloned());
            self.distinct.len() - 1
        })
    }

    /// All of them, by index.
    pub fn distinct(&self) -> &[Option<Arc<ClientAuth>>] {
        &self.distinct
    }

    /// Whether hosts differ at all.
    pub fn differ(&self) -> bool {
        self.distinct.len() > 1
    }

    /// The policy of a host (lower case, no port, no final dot; may be empty): the exact name's, else
    /// that of the longest wildcard which holds it, else the listener's. Cost: a look-up for each label
    /// of the longest wildcard.
    pub fn of(&self, host: &str) -> usize {
        if let Some(index) = self.exact.get(host) {
            return *index;
        }
        let suffixes = host.rmatch_indices('.').take(self.labels).filter(|(at, _)| *at > 0);
        let found = suffixes.filter_map(|(at, _)| self.wildcard.get(&host[at + 1..]));
        found.last().copied().unwrap_or(0)
    }

    /// Whether a connection that was made under a policy may carry requests for a host.
    pub fn allows(&self, made_under: usize, host: &str) -> bool {
        let wanted = self.of(host);
        wanted == made_under || self.distinct[wanted].is_none()
    }
}

/// What a client's certificate, which was verified, says about it; or that it showed none.
#[derive(Debug)]
pub struct ClientCertificate {
    /// For backends, ready to be sent.
    pub fields: Vec<(&'static str, Vec<u8>)>,
    /// Subject and fingerprint; `None`: the client has none.
    pub shown: Option<(String, String)>,
}

impl ClientCertificate {
    /// As the access log has it.
    pub fn for_log(&self) -> Option<ClientInfo<'_>> {
        let (subject, fingerprint) = self.shown.as_ref()?;
        Some(ClientInfo { subject, fingerprint })
    }
}
