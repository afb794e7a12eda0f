"""The storage's side of tests/storage/run.sh:  account.py [damage | remove]

Without an argument: makes the bucket, a user who may write there and one who may read, and prints their keys as variables."""

import json
import os
import sys

import boto3

KEY = {"Bucket": "models", "Key": "fashion/doorward.safetensors"}


def user(iam, name, actions):
    """Its access key."""
    iam.create_user(UserName=name)
    statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=policy)
    return iam.create_access_key(UserName=name)["AccessKey"]


def client(service):
    endpoint, region = os.environ["AWS_ENDPOINT_URL"], os.environ["AWS_REGION"]
    return boto3.client(service, endpoint_url=endpoint, region_name=region)


match sys.argv[1:]:
    case []:
        # Seven requests, which the storage does not check yet.
        os.environ.update(AWS_ACCESS_KEY_ID="nobody", AWS_SECRET_ACCESS_KEY="nothing")
        place = {"LocationConstraint": os.environ["AWS_REGION"]}
        client("s3").create_bucket(Bucket=KEY["Bucket"], CreateBucketConfiguration=place)
        iam = client("iam")
        writer = user(iam, "writer", ["s3:*"])
        reader = user(iam, "reader", ["s3:GetObject"])
        print(f"AWS_ACCESS_KEY_ID={writer['AccessKeyId']}\nAWS_SECRET_ACCESS_KEY={writer['SecretAccessKey']}")
        print(f"READER_ID={reader['AccessKeyId']}\nREADER_SECRET={reader['SecretAccessKey']}")
    case ["damage"]:
        s3 = client("s3")
        body = bytearray(s3.get_object(**KEY)["Body"].read())
        body[-1] ^= 1
        s3.put_object(**KEY, Body=bytes(body))
    case ["remove"]:
        client("s3").delete_object(**KEY)
