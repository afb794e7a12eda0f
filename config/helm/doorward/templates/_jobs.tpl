{{/* Where the claims of calibrate and scan are in their pods. */}}
{{- define "doorward.jobEnvironment" -}}
{{- $c := .Values.calibrate }}
- {name: DOORWARD_MODEL__PATH, value: "/mnt/model/{{ $c.model.path }}"}
- {name: DOORWARD_CALIBRATION__CLEAN_IMAGES, value: "/mnt/clean-images/{{ $c.cleanImages.path }}"}
{{- if $c.trainingImages.claim }}
- {name: DOORWARD_CALIBRATION__TRAINING_IMAGES, value: "/mnt/training-images/{{ $c.trainingImages.path }}"}
{{- end }}
- {name: DOORWARD_CALIBRATION__ARTIFACT, value: {{ $c.artifact.url | default (printf "/mnt/artifact/%s" $c.artifact.path) | quote }}}
# A job serves nothing; the key has no default.
- {name: DOORWARD_UPSTREAM__URL, value: "http://127.0.0.1:1"}
- {name: DOORWARD_TELEMETRY__FORMAT, value: json}
{{- end }}

{{/* Credentials for an artifact in storage. */}}
{{- define "doorward.jobSecret" -}}
{{- with .Values.calibrate.artifact.secret }}
envFrom:
  - secretRef: {name: {{ . }}}
{{- end }}
{{- end }}

{{- define "doorward.jobMounts" -}}
{{- $c := .Values.calibrate }}
- {name: model, mountPath: /mnt/model, readOnly: true}
- {name: clean-images, mountPath: /mnt/clean-images, readOnly: true}
{{- if $c.trainingImages.claim }}
- {name: training-images, mountPath: /mnt/training-images, readOnly: true}
{{- end }}
{{- if $c.settings }}
- {name: settings, mountPath: /etc/doorward, readOnly: true}
{{- end }}
{{- end }}

{{- define "doorward.jobVolumes" -}}
{{- $c := .Values.calibrate }}
- name: model
  persistentVolumeClaim: {claimName: {{ required "set calibrate.model.claim" $c.model.claim }}, readOnly: true}
- name: clean-images
  persistentVolumeClaim: {claimName: {{ required "set calibrate.cleanImages.claim" $c.cleanImages.claim }}, readOnly: true}
{{- with $c.trainingImages.claim }}
- name: training-images
  persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}
{{- end }}
{{- if $c.settings }}
- name: settings
  configMap: {name: {{ include "doorward.name" . }}-job}
{{- end }}
{{- end }}
