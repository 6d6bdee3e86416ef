//! Container images, written as OCI archives straight into containerd: no registry, no builder, no copy on disk.
//!
//! The archive is written twice: once into a hash, because names inside it contain the digests, and once into
//! `ctr images import`. Times and owners are fixed, so the same files give the same digest and are imported once.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::command;
use super::processes::Supervisor;
use super::tools::{hex, hex_digest};

/// The user that images run as: not root, as Pod Security "restricted" wants it.
pub const IMAGE_USER: u32 = 65532;

/// An image in the box, by name and by content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRef {
    /// For example `localhost/operator:box`.
    pub name: String,
    /// `sha256:…` of the manifest.
    pub digest: String,
}

impl ImageRef {
    /// The name pinned by digest, `localhost/operator@sha256:…`: what a Pod should ask for.
    pub fn pinned(&self) -> String {
        format!("{}@{}", repository(&self.name), self.digest)
    }
}

/// A file of an image, by its path without a leading slash.
#[derive(Debug, Clone)]
enum Node {
    Dir(u32),
    Bytes(Vec<u8>),
    File(PathBuf, u32),
}

/// What goes into one image.
#[derive(Debug, Default)]
pub(super) struct Contents {
    nodes: BTreeMap<String, Node>,
    entrypoint: Option<String>,
}

impl Contents {
    /// A program at `/usr/local/bin`, with the shared libraries it needs and what almost every program expects.
    pub(super) fn program(binary: &Path, files: &[(PathBuf, String)]) -> Result<Self> {
        ensure!(binary.is_file(), "there is no program at {}", binary.display());
        let name = binary.file_name().context("the program needs a name")?.to_string_lossy();
        let mut contents = Self { entrypoint: Some(format!("/usr/local/bin/{name}")), ..Self::default() };
        contents.add("tmp", Node::Dir(0o1777));
        contents.add("etc/passwd", Node::Bytes(format!("nonroot:x:{IMAGE_USER}:{IMAGE_USER}::/:/\n").into_bytes()));
        contents.add("etc/nsswitch.conf", Node::Bytes(b"hosts: files dns\n".to_vec()));
        let certificates = Path::new("/etc/ssl/certs/ca-certificates.crt");
        if certificates.exists() {
            contents.add("etc/ssl/certs/ca-certificates.crt", Node::File(certificates.into(), 0o644));
        }
        contents.add(&format!("usr/local/bin/{name}"), Node::File(binary.into(), 0o755));
        for library in libraries(binary)? {
            contents.add(&library.to_string_lossy(), Node::File(library.canonicalize()?, 0o755));
        }
        for (source, target) in files {
            contents.tree(source, target)?;
        }
        Ok(contents)
    }

    /// The files of a folder, at the root.
    pub(super) fn folder(dir: &Path) -> Result<Self> {
        ensure!(dir.is_dir(), "there is no folder at {}", dir.display());
        let mut contents = Self::default();
        contents.tree(dir, "/")?;
        ensure!(!contents.nodes.is_empty(), "the folder {} is empty", dir.display());
        Ok(contents)
    }

    fn tree(&mut self, source: &Path, target: &str) -> Result<()> {
        let meta = fs::metadata(source).with_context(|| format!("could not read {}", source.display()))?;
        if meta.is_file() {
            // Readable by everyone: the image's user does not own it.
            self.add(target, Node::File(source.into(), meta.permissions().mode() & 0o111 | 0o444));
            return Ok(());
        }
        for entry in fs::read_dir(source)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_str().with_context(|| format!("{} is not UTF-8", entry.path().display()))?;
            self.tree(&entry.path(), &format!("{}/{name}", target.trim_end_matches('/')))?;
        }
        Ok(())
    }

    fn add(&mut self, path: &str, node: Node) {
        let path = path.trim_matches('/');
        for (cut, _) in path.match_indices('/') {
            self.nodes.entry(path[..cut].to_owned()).or_insert(Node::Dir(0o755));
        }
        if !path.is_empty() {
            self.nodes.insert(path.to_owned(), node);
        }
    }

    /// The only layer: a tar file with fixed times and owners, parents before children.
    fn write_layer(&self, out: impl Write) -> Result<()> {
        let mut tar = tar::Builder::new(out);
        for (path, node) in &self.nodes {
            match node {
                Node::Dir(mode) => append(&mut tar, &format!("{path}/"), *mode, 0, io::empty())?,
                Node::Bytes(bytes) => append(&mut tar, path, 0o644, bytes.len() as u64, bytes.as_slice())?,
                Node::File(source, mode) => {
                    let file = File::open(source).with_context(|| format!("could not open {}", source.display()))?;
                    let size = file.metadata()?.len();
                    append(&mut tar, path, *mode, size, file.take(size))?;
                }
            }
        }
        tar.finish()?;
        Ok(())
    }
}

fn append(tar: &mut tar::Builder<impl Write>, path: &str, mode: u32, size: u64, data: impl Read) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(if path.ends_with('/') { tar::EntryType::Directory } else { tar::EntryType::Regular });
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    tar.append_data(&mut header, path, data).with_context(|| format!("could not pack {path}"))
}

/// The shared libraries of a program, as the dynamic linker finds them here.
fn libraries(binary: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(binary).output().context("could not start `ldd`")?;
    let said = String::from_utf8_lossy(&output.stdout);
    if let Some(line) = said.lines().find(|line| line.contains("not found")) {
        bail!("{} needs a library that is not installed: {}", binary.display(), line.trim());
    }
    // A static program makes ldd fail: no line names a path then.
    let paths = said.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.filter(|path| !path.ends_with(':')).map(PathBuf::from).collect())
}

/// `localhost/NAME:box` unless the name says more.
fn qualified(name: &str) -> String {
    let name = if name.contains('/') { name.to_owned() } else { format!("localhost/{name}") };
    if repository(&name) == name { format!("{name}:box") } else { name }
}

/// The name without its tag; a colon before the last slash belongs to a port.
fn repository(name: &str) -> &str {
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// Bytes of the image of a program on a node's disk: its only layer, the program without symbols as a Dockerfile puts it
/// there.
pub fn image_size(program: &Path) -> Result<u64> {
    let dir = tempfile::tempdir().context("making a folder")?;
    let stripped = dir.path().join(program.file_name().context("the program needs a name")?);
    let done = Command::new("strip").arg("-o").arg(&stripped).arg(program).status();
    ensure!(
        done.context("could not start `strip` (Debian: binutils)")?.success(),
        "strip {} failed",
        program.display()
    );
    let mut measure = Measure::default();
    Contents::program(&stripped, &[])?.write_layer(&mut measure)?;
    Ok(measure.size)
}

/// Counts and hashes what is written.
#[derive(Default)]
struct Measure {
    hash: Sha256,
    size: u64,
}

impl Write for Measure {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An image whose digests are known.
pub(super) struct Built<'a> {
    image: ImageRef,
    contents: &'a Contents,
    config: Vec<u8>,
    manifest: Vec<u8>,
    layer: String,
    size: u64,
}

impl<'a> Built<'a> {
    /// Hashes the files.
    pub(super) fn of(name: &str, contents: &'a Contents) -> Result<Self> {
        let mut layer = Measure::default();
        contents.write_layer(io::BufWriter::with_capacity(1 << 20, &mut layer))?;
        let size = layer.size;
        let layer = hex(&layer.hash.finalize());
        let config = serde_json::to_vec(&config(contents, &layer))?;
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": format!("sha256:{}", hex_digest(&config)),
                "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": format!("sha256:{layer}"),
                "size": size,
            }],
        }))?;
        let image = ImageRef { name: qualified(name), digest: format!("sha256:{}", hex_digest(&manifest)) };
        Ok(Self { image, contents, config, manifest, layer, size })
    }

    /// Its name and digest.
    pub(super) fn image(&self) -> &ImageRef {
        &self.image
    }

    /// Writes an OCI archive.
    pub(super) fn write(&self, out: impl Write) -> Result<()> {
        let index = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": self.image.digest,
                "size": self.manifest.len(),
                "annotations": { "io.containerd.image.name": self.image.name },
            }],
        }))?;
        let blob = |digest: &str| format!("blobs/sha256/{digest}");
        let mut tar = tar::Builder::new(io::BufWriter::with_capacity(1 << 20, out));
        for (path, bytes) in [
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"# as &[u8]),
            ("index.json".to_owned(), &index),
            (blob(&hex_digest(&self.manifest)), &self.manifest),
            (blob(&hex_digest(&self.config)), &self.config),
        ] {
            append(&mut tar, &path, 0o644, bytes.len() as u64, bytes)?;
        }
        // A tar entry is its header, its data, and zeros up to the next 512 bytes.
        let mut header = tar::Header::new_gnu();
        header.set_path(blob(&self.layer))?;
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(self.size);
        header.set_mtime(0);
        header.set_cksum();
        tar.get_mut().write_all(header.as_bytes())?;
        self.contents.write_layer(tar.get_mut())?;
        let padding = (512 - self.size % 512) % 512;
        tar.get_mut().write_all(&vec![0; padding as usize])?;
        tar.into_inner()?.flush()?;
        Ok(())
    }
}

/// Puts an image into containerd and makes its digest reference resolve.
pub(super) fn load(supervisor: &Supervisor<'_>, name: &str, contents: &Contents) -> Result<ImageRef> {
    let built = Built::of(name, contents)?;
    let image = built.image().clone();
    let known = command::run(&mut supervisor.ctr(&["images", "ls", "-q"])?)?;
    let pinned = image.pinned();
    // Kubelet asks by name, and import stores only the tag: each of the two names is made from the one that is there.
    let (from, to) = if known.lines().any(|line| line == pinned) {
        (&pinned, &image.name)
    } else {
        command::run_with_writer(&mut supervisor.ctr(&["images", "import", "-"])?, |pipe| built.write(pipe))
            .with_context(|| format!("could not load the image {}", image.name))?;
        (&image.name, &pinned)
    };
    command::run(&mut supervisor.ctr(&["images", "tag", "--force", from, to])?)?;
    Ok(image)
}

/// Pushes an image of a program to a registry with `skopeo`, or only says what its reference is.
pub fn publish_program(registry: &str, name: &str, binary: &Path, push: bool) -> Result<ImageRef> {
    publish(registry, name, &Contents::program(binary, &[])?, push)
}

/// The same for an image of a model's folder.
pub fn publish_model(registry: &str, name: &str, folder: &Path, push: bool) -> Result<ImageRef> {
    publish(registry, name, &Contents::folder(folder)?, push)
}

fn publish(registry: &str, name: &str, contents: &Contents, push: bool) -> Result<ImageRef> {
    let built = Built::of(&format!("{}/{name}", registry.trim_end_matches('/')), contents)?;
    let image = built.image().clone();
    if push {
        let archive = tempfile::NamedTempFile::new().context("making a temporary file")?;
        built.write(archive.as_file())?;
        let source = format!("oci-archive:{}", archive.path().display());
        let target = format!("docker://{}", image.name);
        let output = Command::new("skopeo")
            .args(["copy", "--preserve-digests", &source, &target])
            .output()
            .context("could not start `skopeo`, which pushes images: apt-get install skopeo")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "could not push {}: {}", image.name, said.trim());
    }
    Ok(image)
}

fn config(contents: &Contents, layer: &str) -> Value {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "architecture": architecture,
        "os": "linux",
        "config": {
            "User": format!("{IMAGE_USER}:{IMAGE_USER}"),
            "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
            "Entrypoint": contents.entrypoint.as_ref().map(|path| vec![path]),
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer}")] },
        "history": [{ "created_by": "cargo box" }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_qualified_once() {
        assert_eq!(qualified("operator"), "localhost/operator:box");
        assert_eq!(qualified("localhost/operator:1"), "localhost/operator:1");
        assert_eq!(qualified("localhost:5000/operator"), "localhost:5000/operator:box");
        assert_eq!(repository("localhost:5000/operator:1"), "localhost:5000/operator");
    }

    /// Path, mode and content of everything below a folder.
    fn laid_out(root: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
        fn walk(root: &Path, dir: &Path, found: &mut BTreeMap<String, (u32, Vec<u8>)>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let meta = fs::metadata(&path).unwrap();
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                let bytes = if meta.is_dir() { Vec::new() } else { fs::read(&path).unwrap() };
                found.insert(name, (meta.permissions().mode() & 0o7777, bytes));
                if meta.is_dir() {
                    walk(root, &path, found);
                }
            }
        }
        let mut found = BTreeMap::new();
        walk(root, root, &mut found);
        found
    }

    /// What a Dockerfile builds is what the box runs: the same files, and the same user, path and entry point.
    #[test]
    fn dockerfiles_make_the_images_of_the_box() {
        let images = crate::stage::checkout().join("images");
        // This very program is linked like the others.
        let program = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let done = Command::new(images.join("rootfs.sh")).arg(&program).arg(dir.path()).status().unwrap();
        assert!(done.success());
        let contents = Contents::program(&program, &[]).unwrap();
        let ours: BTreeMap<String, (u32, Vec<u8>)> = contents
            .nodes
            .iter()
            .map(|(path, node)| {
                let (mode, bytes) = match node {
                    Node::Dir(mode) => (*mode, Vec::new()),
                    Node::Bytes(bytes) => (0o644, bytes.clone()),
                    Node::File(source, mode) => (*mode, fs::read(source).unwrap()),
                };
                (path.clone(), (mode, bytes))
            })
            .collect();
        let theirs = laid_out(dir.path());
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        for (path, (mode, bytes)) in &ours {
            assert_eq!(*mode, theirs[path].0, "mode of {path}");
            assert!(*bytes == theirs[path].1, "content of {path}");
        }
        for (name, file) in [
            ("operator", "operator"),
            ("inference-worker", "inference-worker"),
            ("inference-worker", "inference-worker-cuda"),
        ] {
            let text = fs::read_to_string(images.join(format!("{file}.Dockerfile"))).unwrap();
            let fake = Contents { entrypoint: Some(format!("/usr/local/bin/{name}")), ..Contents::default() };
            let wanted = config(&fake, "0")["config"].clone();
            let line = |word: &str| text.lines().find_map(|line| line.strip_prefix(word)).unwrap_or_default();
            assert_eq!(line("USER "), wanted["User"]);
            assert_eq!(line("ENV PATH="), wanted["Env"][0].as_str().unwrap().trim_start_matches("PATH="));
            assert_eq!(serde_json::from_str::<Value>(line("ENTRYPOINT ")).unwrap(), wanted["Entrypoint"]);
            let froms: Vec<_> = text.lines().filter(|line| line.starts_with("FROM ")).collect();
            // Whose nvcc builds the kernels.
            let toolkit = file.ends_with("-cuda").then_some("FROM ${CUDA_IMAGE} AS toolkit");
            let expected: Vec<_> = toolkit.into_iter().chain(["FROM ${RUST_IMAGE} AS build", "FROM scratch"]).collect();
            assert_eq!(froms, expected, "{file}: nothing comes by a tag");
            assert!(text.lines().any(|line| line == "ARG RUST_IMAGE"), "{file}: the compiler's image has no default");
            let build = "cargo build --release --locked --workspace --bins";
            assert!(text.contains(build), "{file}: the programs are built as the box builds them");
            assert!(text.contains(&format!("images/rootfs.sh target/release/{name} /rootfs")));
        }
    }

    #[test]
    fn an_image_weighs_at_least_its_program_and_less_than_it_with_its_symbols() {
        let program = std::env::current_exe().unwrap();
        let weight = image_size(&program).unwrap();
        assert!(weight > 1 << 20 && weight < fs::metadata(&program).unwrap().len() + (8 << 20), "{weight}");
        assert!(image_size(Path::new("/nowhere")).is_err());
    }

    #[test]
    fn the_same_files_give_the_same_layer() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/weights"), [7; 1000]).unwrap();
        let layer = || {
            let mut bytes = Vec::new();
            Contents::folder(dir.path()).unwrap().write_layer(&mut bytes).unwrap();
            bytes
        };
        let first = layer();
        fs::write(dir.path().join("sub/weights"), [7; 1000]).unwrap();
        assert_eq!(first, layer());
        let mut archive = tar::Archive::new(first.as_slice());
        let paths: Vec<_> = archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().into_owned()).collect();
        assert_eq!(paths, [PathBuf::from("sub/"), PathBuf::from("sub/weights")]);
    }
}
