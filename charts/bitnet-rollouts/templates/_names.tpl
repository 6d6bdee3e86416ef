{{- /* Full name: names of cluster-wide objects are made from it, so two releases in a cluster need two full names. */ -}}
{{- define "bitnet.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "bitnet.serviceAccount" -}}
{{- default (include "bitnet.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- /* The operator as the API server sees it. */ -}}
{{- define "bitnet.user" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "bitnet.serviceAccount" . }}
{{- end -}}

{{- define "bitnet.selector" -}}
app.kubernetes.io/name: bitnet-rollouts-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "bitnet.labels" -}}
{{ include "bitnet.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: bitnet-rollouts
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- /* An image by digest, else by tag, else by the chart's appVersion: (list . .Values.image). */ -}}
{{- define "bitnet.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default $root.Chart.AppVersion $image.tag }}
{{- end -}}
{{- end -}}

{{- /* What operator and detach job have in common. */ -}}
{{- define "bitnet.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "bitnet.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "bitnet.env" -}}
- {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
- {name: BITNET_LEASE_IDENTITY, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: BITNET_LOG_FORMAT, value: {{ .Values.logFormat | quote }}}
- {name: RUST_LOG, value: {{ .Values.log | quote }}}
{{- end -}}

{{- /* Where traces go, in the variables of the OpenTelemetry specification. */ -}}
{{- define "bitnet.otlp" -}}
{{- $attributes := list "k8s.namespace.name=$(POD_NAMESPACE)" "k8s.pod.name=$(POD_NAME)" -}}
{{- range $name, $value := .resourceAttributes -}}
{{- $attributes = append $attributes (printf "%s=%s" $name $value) -}}
{{- end -}}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ .endpoint | quote }}}
- {name: OTEL_SERVICE_NAME, value: {{ .serviceName | quote }}}
- {name: OTEL_RESOURCE_ATTRIBUTES, value: {{ join "," $attributes | quote }}}
- {name: OTEL_TRACES_SAMPLER, value: parentbased_traceidratio}
- {name: OTEL_TRACES_SAMPLER_ARG, value: {{ .sampleRatio | toString | quote }}}
{{- with .headersSecret }}
- {name: OTEL_EXPORTER_OTLP_HEADERS, valueFrom: {secretKeyRef: {name: {{ . }}, key: headers}}}
{{- end }}
{{- end -}}
