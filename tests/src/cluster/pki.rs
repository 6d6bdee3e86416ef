//! Certificates, and users that are known by a token.

use std::fmt::Write;
use std::fs;
use std::io::Read;
use std::process::Command;

use anyhow::Result;

use super::command::run;
use super::layout::{API_IP, Layout, NODE_IP};
use super::tools::hex;

/// People for tests: the administrator, and two with no rights until a test binds some.
pub const USERS: &[&str] = &["admin", "alice", "bob"];

/// (file, user, group) of everyone who talks to the API server; tokens are read at its start only.
const ACCOUNTS: &[(&str, &str, &str)] = &[
    ("admin", "admin", "system:masters"),
    ("alice", "alice", ""),
    ("bob", "bob", ""),
    ("controller-manager", "system:kube-controller-manager", ""),
    ("scheduler", "system:kube-scheduler", ""),
    ("kubelet", "system:node:box", "system:nodes"),
    ("proxy", "system:kube-proxy", ""),
    ("coredns", "system:coredns", "system:masters"),
];

/// Writes the authority, the API server's certificate, the signing key of service accounts, and a kubeconfig per user.
pub(super) fn create(layout: &Layout) -> Result<()> {
    let pki = layout.pki();
    fs::create_dir_all(&pki)?;
    fs::write(
        pki.join("openssl.cnf"),
        format!(
            "[req]\ndistinguished_name=dn\nprompt=no\n[dn]\nCN={}\n\
             [ca]\nbasicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n\
             [api]\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\nauthorityKeyIdentifier=keyid\n\
             subjectAltName=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,\
             DNS:kubernetes.default.svc.cluster.local,DNS:localhost,IP:127.0.0.1,IP:{NODE_IP},IP:{API_IP}\n",
            layout.name()
        ),
    )?;
    let openssl = |line: &str| run(Command::new("openssl").current_dir(&pki).args(line.split(' '))).map(drop);
    openssl("ecparam -name prime256v1 -genkey -noout -out ca.key")?;
    openssl("req -x509 -new -key ca.key -out ca.crt -days 365 -config openssl.cnf -extensions ca")?;
    openssl("ecparam -name prime256v1 -genkey -noout -out api.key")?;
    openssl("req -new -key api.key -out api.csr -subj /CN=kube-apiserver -config openssl.cnf")?;
    openssl(
        "x509 -req -in api.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out api.crt -days 365 \
         -extfile openssl.cnf -extensions api",
    )?;
    openssl("ecparam -name prime256v1 -genkey -noout -out sa.key")?;

    let mut tokens = String::new();
    for (file, user, group) in ACCOUNTS {
        let token = token()?;
        writeln!(tokens, "{token},{user},{user},\"{group}\"")?;
        fs::write(layout.user_config(file), kubeconfig(layout, user, &token))?;
    }
    fs::write(pki.join("tokens.csv"), tokens)?;
    Ok(())
}

fn token() -> Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(hex(&bytes))
}

fn kubeconfig(layout: &Layout, user: &str, token: &str) -> String {
    let authority = layout.pki().join("ca.crt");
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: box\n\
         clusters: [{{name: box, cluster: {{server: \"https://{NODE_IP}:6443\", certificate-authority: \"{}\"}}}}]\n\
         users: [{{name: \"{user}\", user: {{token: \"{token}\"}}}}]\n\
         contexts: [{{name: box, context: {{cluster: box, user: \"{user}\"}}}}]\n",
        authority.display()
    )
}
