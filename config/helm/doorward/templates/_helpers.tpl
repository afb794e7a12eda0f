{{- define "doorward.name" -}}
{{- if contains "doorward" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-doorward" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "doorward.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "doorward.selector" -}}
app.kubernetes.io/name: doorward
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "doorward.labels" -}}
{{ include "doorward.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "doorward.pod" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  fsGroup: 65532
  runAsGroup: 65532
  runAsNonRoot: true
  runAsUser: 65532
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "doorward.container" -}}
image: {{ include "doorward.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
  readOnlyRootFilesystem: true
{{- end }}

{{- define "doorward.certificateSecret" -}}
{{- if eq .Values.webhook.certificate.source "secret" -}}
{{ required "webhook.certificate.source is secret: set webhook.certificate.secretName" .Values.webhook.certificate.secretName }}
{{- else -}}
{{ include "doorward.name" . }}-webhook-tls
{{- end -}}
{{- end }}

{{- define "doorward.serviceName" -}}
{{ include "doorward.name" . }}-webhook.{{ .Release.Namespace }}.svc
{{- end }}

{{/* injection.toml: values are strings or numbers. */}}
{{- define "doorward.injection" -}}
{{- $sidecar := merge (dict) (.Values.injection.sidecar | default dict) (dict "image" (include "doorward.image" .)) -}}
[sidecar]
{{- range $key, $value := $sidecar }}
{{ $key }} = {{ if kindIs "string" $value }}{{ $value | toJson }}{{ else }}{{ $value | int }}{{ end }}
{{- end }}

{{- if eq .Values.webhook.certificate.source "self" }}

[webhook.self_managed]
secret = {{ include "doorward.certificateSecret" . | quote }}
namespace = {{ .Release.Namespace | quote }}
service = "{{ include "doorward.name" . }}-webhook"
{{- end }}

[telemetry]
{{- range $key, $value := .Values.injection.telemetry }}
{{ $key }} = {{ $value | toJson }}
{{- end }}
{{- end }}
