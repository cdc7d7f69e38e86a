//! The account at the directory: made once, kept with its key, brought up to date where the configuration changed.

use instant_acme::{Account, AccountCredentials, ExternalAccountKey, NewAccount};
use serde::{Deserialize, Serialize};

use super::{client::Client, failure::Failure, storage::Storage};
use crate::config::AcmeAccount;

/// The file.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// As the directory last heard it.
    contact: Vec<String>,
    credentials: AccountCredentials,
}

/// The account of before, or a new one.
pub(super) async fn open(
    wanted: &AcmeAccount,
    storage: &Storage,
    client: &Client,
) -> Result<Account, Failure> {
    let Some(Kept { contact, credentials }) = storage.account()? else {
        return register(wanted, storage, client).await;
    };
    // What the library takes, it does not give back.
    let again = serde_json::to_value(&credentials).and_then(serde_json::from_value);
    let account = builder(client).from_credentials(credentials).await?;
    if contact != wanted.contact {
        // WHY: certificates matter more than who is told about them.
        if let Err(error) = account.update_contacts(&references(&wanted.contact)).await {
            let Failure { detail, .. } = error.into();
            tracing::warn!("acme: the contact of the account {} stays as it was: {detail}", account.id());
            return Ok(account);
        }
        if let Ok(credentials) = again {
            storage.keep_account(&Kept { contact: wanted.contact.clone(), credentials })?;
        }
        tracing::info!("acme: the contact of the account {} was changed", account.id());
    }
    Ok(account)
}

/// Makes a new account, in place of one that may be there.
pub(super) async fn register(
    wanted: &AcmeAccount,
    storage: &Storage,
    client: &Client,
) -> Result<Account, Failure> {
    let new = NewAccount {
        contact: &references(&wanted.contact),
        terms_of_service_agreed: wanted.terms_of_service_agreed,
        only_return_existing: false,
    };
    let binding = wanted.eab.as_ref().map(|eab| ExternalAccountKey::new(eab.key_id.clone(), &eab.hmac_key));
    let made = builder(client).create(&new, wanted.directory.clone(), binding.as_ref()).await;
    let (account, credentials) = made?;
    storage.keep_account(&Kept { contact: wanted.contact.clone(), credentials })?;
    let file = storage.account_file();
    tracing::info!(
        "acme: made the account {} at {}; its key is in {}",
        account.id(),
        wanted.directory,
        file.display()
    );
    Ok(account)
}

fn builder(client: &Client) -> instant_acme::AccountBuilder {
    Account::builder_with_http(Box::new(client.clone()))
}

fn references(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}
