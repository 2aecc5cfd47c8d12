{{- define "evenkeel.labels" -}}
app.kubernetes.io/name: evenkeel
app.kubernetes.io/part-of: evenkeel
{{- end }}

{{- define "evenkeel.autoscaled" -}}
{{- if ne .Values.autoscaling.kind "none" }}yes{{ end }}
{{- end }}

{{- define "evenkeel.config" -}}
{{- if gt (int (add .Values.drain.graceAcceptSeconds .Values.drain.windowSeconds 15)) (int .Values.terminationGracePeriodSeconds) }}
{{- fail "terminationGracePeriodSeconds must be at least drain.graceAcceptSeconds + drain.windowSeconds + 15: pods would be killed while they drain" }}
{{- end -}}
# What differs from the defaults in a cluster. Secrets come from the Secret `{{ .Values.existingSecret }}`, mounted as files.
listen = "0.0.0.0:8000"

[internal]
listen = "0.0.0.0:9000"

[api]
# The server API is on the internal port only: no ingress leads there.
listen = "internal"
keys_file = "/run/secrets/evenkeel/api-keys"

[client.token]
hmac_secret_file = "/run/secrets/evenkeel/token-hmac-secret"

[limits]
# With the memory limit of the Deployment: 50,000 connections take about 6.5 KB each, kernel included.
max_connections = {{ .Values.limits.maxConnections | int }}

[drain]
# Load balancers need this long to see that the pod is not ready.
grace_accept = "{{ .Values.drain.graceAcceptSeconds }}s"
# terminationGracePeriodSeconds is {{ .Values.terminationGracePeriodSeconds }}: this, the accept grace, and the time for stragglers.
window = "{{ .Values.drain.windowSeconds }}s"
# A little less than the grace period: a drain takes this long when the other pods are short of accept capacity.
deadline = "{{ sub (int .Values.terminationGracePeriodSeconds) 5 }}s"

[log]
{{- if ne .Values.log.level "info" }}
level = {{ .Values.log.level | quote }}
{{- end }}
format = {{ .Values.log.format | quote }}
{{- with .Values.config }}

{{ . }}
{{- end }}
{{- end }}
