//! The files of the page, as they are in this program, and the headers of every answer.

use axum::{
    Router,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
    routing::get,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest as _, Sha256};
use std::sync::LazyLock;

/// The page. Its style is in it, so that the first paint needs one answer.
static PAGE: LazyLock<String> = LazyLock::new(|| include_str!("assets/index.html").replace("/* app.css */", STYLE));
const STYLE: &str = include_str!("assets/app.css");

/// Path, media type, content. All that a browser loads before it asks for rollouts.
pub(super) fn files() -> [(&'static str, &'static str, &'static str); 3] {
    [
        ("/", "text/html; charset=utf-8", &PAGE),
        ("/app.js", "text/javascript; charset=utf-8", include_str!("assets/app.js")),
        ("/chart.js", "text/javascript; charset=utf-8", include_str!("assets/chart.js")),
    ]
}

/// Scripts and connections of this site only, the one style that is named by its hash, in no frame, no form.
pub(super) static POLICY: LazyLock<String> = LazyLock::new(|| {
    let style = STANDARD.encode(Sha256::digest(STYLE));
    format!(
        "default-src 'none'; script-src 'self'; style-src 'sha256-{style}'; connect-src 'self'; img-src 'self' data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    )
});

const HEADERS: [(&str, &str); 5] = [
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    // A new operator brings new pages, and what it says is of this moment.
    ("cache-control", "no-store"),
];

pub(super) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    files().into_iter().fold(Router::new(), |router, (path, kind, text)| {
        router.route(path, get(move || async move { ([(header::CONTENT_TYPE, kind)], text).into_response() }))
    })
}

/// The answer with the headers that every answer has.
pub(super) async fn guarded(mut response: Response) -> Response {
    if let Ok(policy) = HeaderValue::from_str(&POLICY) {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    for (name, value) in HEADERS {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}
